"""Every image through the encoder, once → data/latents.h5."""

from functools import partial

import numpy as np
import torch

from lfm import autoencoder
from lfm.autoencoder import ImageAutoencoder
from pipeline import arrays, scratch
from pipeline.files import AUTOENCODER, IMAGES, IMAGES_FORMAT, LATENTS, LATENTS_FORMAT, SPLITS, sha256_of
from pipeline.params import Params
from pipeline.report import Progress
from pipeline.runtime import device, precision
from stages.cli import run


@torch.inference_mode()
def moments(coder: ImageAutoencoder, images: np.ndarray, batch: int, name: str) -> dict[str, np.ndarray]:
    """Mean and standard deviation of the posteriors of some images, (B, c, h, w) each."""
    full = np.resize(images, (batch, *images.shape[1:]))  # one shape for all: the last batch repeats itself
    with precision(name, where := device()):
        mean, std = coder.moments(torch.from_numpy(full).to(where))
    return {"mean": mean[: len(images)].cpu().numpy(), "std": std[: len(images)].cpu().numpy()}


def main(p: Params) -> None:
    where, batch = device(), p.encode.batch_size
    with (
        arrays.reading(IMAGES, IMAGES_FORMAT) as images,
        scratch.opened() as saved,
        arrays.writing(LATENTS) as latents,
    ):
        _, channels, *size = images.shape("train/images")
        coder = ImageAutoencoder(autoencoder.load(AUTOENCODER), channels, (size[0], size[1])).to(where)
        lengths = {split: images.shape(f"{split}/labels")[0] for split in SPLITS}
        sums: list[np.ndarray] = []  # of each training batch: Σ mean, Σ mean², Σ std², a channel each
        with Progress(sum(lengths.values()), "encode", "image", p.runtime.progress) as progress:
            for split, n in lengths.items():
                latents.add(f"{split}/labels", images.read(f"{split}/labels"))
                for start in range(0, n, batch):
                    part = images.read(f"{split}/images", start, min(start + batch, n))
                    make = partial(moments, coder, part, batch, p.encode.precision)
                    found = saved.part(f"{split}-{start}", make)
                    mean, std = found["mean"], found["std"]
                    for name, rows in (("mean", mean), ("std", std)):
                        if start == 0:
                            latents.create(f"{split}/{name}", (n, *rows.shape[1:]), np.float32)
                        latents.put(f"{split}/{name}", start, rows)
                    if split == "train":
                        sums.append(np.stack([v.sum((0, 2, 3), dtype=np.float64) for v in (mean, mean**2, std**2)]))
                    progress.advance(len(part))
        count = lengths["train"] * mean[0, 0].size
        first, second, noise = np.sum(sums, axis=0) / count
        latents.add("scale/mean", first.astype(np.float32))
        latents.add("scale/std", np.sqrt(second - first**2 + noise).astype(np.float32))
        latents.attributes(
            format=LATENTS_FORMAT,
            dataset=images.attribute("dataset"),
            classes=images.attribute("classes"),
            image_channels=channels,
            image_height=size[0],
            image_width=size[1],
            autoencoder_sha256=sha256_of(AUTOENCODER, (autoencoder.CONFIG, autoencoder.WEIGHTS)),
            train_sha256=images.attribute("train_sha256"),
        )


if __name__ == "__main__":
    run(main, "encode")

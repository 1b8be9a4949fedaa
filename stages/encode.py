"""Every image through the encoder, once → data/latents.h5."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lfm import random
from lfm.nets import autoencoder
from lfm.nets.autoencoder import ImageAutoencoder
from lfm.nets.latents import LatentScale
from lfm.nets.weights import digest
from lfm.precision import precision, resolve
from pipeline.artifacts import hdf5, images, latents
from pipeline.artifacts.hdf5 import SPLITS, ArrayFile, ArrayWriter
from pipeline.errors import UserError
from pipeline.machine.scratch import Scratch
from pipeline.params import EncodeParams
from pipeline.progress import Progress
from pipeline.run import Context, run
from pipeline.training.order import BLOCK

BATCHES = 8  # a part is so many
LARGEST = 1e18  # a latent whose square float32 still holds


class Part(NamedTuple):
    """Rows of one split that are encoded and kept together: whole batches."""

    split: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.start}"


class Encoder:
    """The autoencoder on a device, and the images that it is given."""

    def __init__(self, folder: Path, p: EncodeParams, pictures: ArrayFile, device: torch.device) -> None:
        _, channels, *size = pictures.shape("train/images")
        self.folder, self.p, self.pictures, self.device = folder, p, pictures, device
        self.coder = ImageAutoencoder(autoencoder.load(folder), channels, (size[0], size[1])).to(self.device)

    @torch.inference_mode()
    def moments(self, part: Part) -> dict[str, np.ndarray]:
        """Mean and standard deviation of the posteriors of a part's images, (N, c, h, w) each."""
        pixels, batch = self.pictures.read(f"{part.split}/images", part.start, part.stop), self.p.batch_size
        moments = []
        for start in range(0, len(pixels), batch):  # a GPU is given all of them before the first is asked for
            full = np.resize(pixels[start : start + batch], (batch, *pixels.shape[1:]))  # the last one repeats itself
            with precision(self.p.precision, self.device):
                moments.append(self.coder.moments(random.moved(torch.from_numpy(full), self.device)))
        mean, std = (torch.cat(values)[: len(pixels)].cpu().numpy() for values in zip(*moments, strict=True))
        if not np.maximum(np.abs(mean).max(), std.max()) < LARGEST:
            raise UserError(
                f"{self.folder}: encodes images of {part.split} to numbers that are not finite or too large; try "
                "encode.precision: float32, or set another autoencoder.source"
            )
        return {"mean": mean, "std": std}


def rows(some: list[Part]) -> int:
    """How many there are in some parts."""
    return sum(part.stop - part.start for part in some)


def parts(lengths: dict[str, int], batch: int) -> list[Part]:
    """All parts of all splits, in order."""
    step = BATCHES * batch
    return [Part(split, i, min(i + step, n)) for split, n in lengths.items() for i in range(0, n, step)]


def assemble(todo: list[Part], encoder: Encoder, out: ArrayWriter, scratch: Scratch, progress: Progress) -> np.ndarray:
    """All parts into the file, those that are missing made here. Returns sums over the training split, a channel each: of
    mean, mean² and std², divided by the number of entries."""
    lengths = {part.split: part.stop for part in todo}
    total = np.zeros(())
    for part in todo:
        moments = scratch.part(part.name, partial(encoder.moments, part))
        for name in ("mean", "std"):
            values = moments[name]
            if part.start == 0:
                out.create(f"{part.split}/{name}", (lengths[part.split], *values.shape[1:]), np.float32, BLOCK)
            out.put(f"{part.split}/{name}", part.start, values)
        if part.split == "train":
            mean, std = moments["mean"], moments["std"]
            sums = [v.sum((0, 2, 3), dtype=np.float64) for v in (mean, mean**2, std**2)]
            total = total + np.stack(sums) / (lengths["train"] * mean[0, 0].size)
        progress.advance(part.stop - part.start)
    return total


def measured_scale(folder: Path, first: np.ndarray, second: np.ndarray, noise: np.ndarray) -> LatentScale:
    """The scale from what `assemble` returns."""
    std = np.sqrt(np.maximum(second - first**2 + noise, 0))
    still = std <= 1e-6 * np.sqrt(second)  # float32 cannot tell its values apart
    if still.any():
        raise UserError(
            f"{folder}: channel {int(still.argmax())} of its latents is the same for all images, so it has no scale; set "
            "encode.scale: config, or another autoencoder.source"
        )
    return LatentScale(*(torch.from_numpy(values.astype(np.float32)) for values in (first, std)))


def main(context: Context) -> None:
    p, folder = context.params.encode, context.input("autoencoder")
    with hdf5.reading(context.input("images"), images.FORMAT) as pictures:
        lengths = {split: pictures.shape(f"{split}/labels")[0] for split in SPLITS}
        todo = parts(lengths, p.batch_size)
        encoder = Encoder(folder, p, pictures, context.device)
        context.share({part.name: partial(encoder.moments, part) for part in todo}, "encode")
        named = encoder.coder.scale() if p.scale == "config" else None
        with context.publish("latents") as part, hdf5.writing(part) as out:
            with context.progress(rows(todo), "encode", "image") as progress:
                sums = assemble(todo, encoder, out, context.scratch, progress)
            for split in SPLITS:
                out.add(f"{split}/labels", pictures.read(f"{split}/labels"))
            scale = named or measured_scale(folder, *sums)
            out.add("scale/mean", scale.mean.numpy())
            out.add("scale/std", scale.std.numpy())
            out.attributes(
                format=latents.FORMAT.name,
                dataset=pictures.attribute("dataset"),
                classes=pictures.attribute("classes"),
                image_channels=encoder.coder.channels,
                image_height=encoder.coder.size[0],
                image_width=encoder.coder.size[1],
                autoencoder_sha256=digest(folder, autoencoder.FILES),
                train_sha256=pictures.attribute("train_sha256"),
                precision=resolve(p.precision, encoder.device),
            )


if __name__ == "__main__":
    run(main)

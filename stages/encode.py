"""Every image through the encoder, once → data/latents.h5."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from lfm.nets import autoencoder
from lfm.nets.autoencoder import ImageAutoencoder
from lfm.nets.latents import LatentScale
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import AUTOENCODER, IMAGES, IMAGES_FORMAT, LATENTS, LATENTS_FORMAT, SPLITS, sha256_of
from pipeline.artifacts.hdf5 import ArrayFile, ArrayWriter
from pipeline.errors import UserError
from pipeline.machine import ranks, scratch
from pipeline.machine.runtime import device, precision
from pipeline.machine.scratch import Scratch
from pipeline.params import EncodeParams, Params
from pipeline.progress import Progress
from pipeline.run import run, told
from pipeline.training import order

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
    """The autoencoder on one process's device, and the images that it is given."""

    def __init__(self, p: EncodeParams, images: ArrayFile, rank: int = 0) -> None:
        _, channels, *size = images.shape("train/images")
        self.p, self.images, self.where = p, images, device(rank)
        self.coder = ImageAutoencoder(autoencoder.load(AUTOENCODER), channels, (size[0], size[1])).to(self.where)

    @torch.inference_mode()
    def moments(self, part: Part) -> dict[str, np.ndarray]:
        """Mean and standard deviation of the posteriors of a part's images, (N, c, h, w) each."""
        images, batch = self.images.read(f"{part.split}/images", part.start, part.stop), self.p.batch_size
        found = []
        for start in range(0, len(images), batch):  # a GPU is given all of them before the first is asked for
            full = np.resize(images[start : start + batch], (batch, *images.shape[1:]))  # the last one repeats itself
            given = torch.from_numpy(full)
            given = given.pin_memory() if self.where.type == "cuda" else given
            with precision(self.p.precision, self.where):
                found.append(self.coder.moments(given.to(self.where, non_blocking=True)))
        mean, std = (torch.cat(values)[: len(images)].cpu().numpy() for values in zip(*found, strict=True))
        if not np.maximum(np.abs(mean).max(), std.max()) < LARGEST:
            raise UserError(
                f"{AUTOENCODER}: encodes images of {part.split} to numbers that are not finite or too large; try "
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


def work(rank: int, processes: int, p: Params, todo: list[Part], saved: Scratch) -> None:
    """One process's share of the parts, into the scratch folder."""
    mine = todo[rank::processes]
    with (
        arrays.reading(IMAGES, IMAGES_FORMAT) as images,
        Progress(rows(mine), f"encode, 1 of {processes}", "image", p.runtime.progress and rank == 0) as progress,
    ):
        encoder = Encoder(p.encode, images, rank)
        for part in mine:
            saved.part(part.name, partial(encoder.moments, part))
            progress.advance(part.stop - part.start)


def assemble(
    todo: list[Part], encoder: Encoder, latents: ArrayWriter, saved: Scratch, progress: Progress
) -> np.ndarray:
    """All parts into the file, those that are missing made here. Returns sums over the training split, a channel each: of
    mean, mean² and std², divided by the number of entries."""
    lengths = {part.split: part.stop for part in todo}
    total = np.zeros(())
    for part in todo:
        found = saved.part(part.name, partial(encoder.moments, part))
        for name in ("mean", "std"):
            values = found[name]
            if part.start == 0:
                latents.create(
                    f"{part.split}/{name}", (lengths[part.split], *values.shape[1:]), np.float32, order.BLOCK
                )
            latents.put(f"{part.split}/{name}", part.start, values)
        if part.split == "train":
            mean, std = found["mean"], found["std"]
            sums = [v.sum((0, 2, 3), dtype=np.float64) for v in (mean, mean**2, std**2)]
            total = total + np.stack(sums) / (lengths["train"] * mean[0, 0].size)
        progress.advance(part.stop - part.start)
    return total


def measured(first: np.ndarray, second: np.ndarray, noise: np.ndarray) -> LatentScale:
    """The scale from what `assemble` returns."""
    std = np.sqrt(np.maximum(second - first**2 + noise, 0))
    still = std <= 1e-6 * np.sqrt(second)  # float32 cannot tell its values apart
    if still.any():
        raise UserError(
            f"{AUTOENCODER}: channel {int(still.argmax())} of its latents is the same for all images, so it has no scale; set "
            "encode.scale: config, or another autoencoder.source"
        )
    return LatentScale(*(torch.from_numpy(values.astype(np.float32)) for values in (first, std)))


def main(p: Params) -> None:
    with arrays.reading(IMAGES, IMAGES_FORMAT) as images, scratch.opened() as saved:
        lengths = {split: images.shape(f"{split}/labels")[0] for split in SPLITS}
        todo = parts(lengths, p.encode.batch_size)
        if ranks.processes() > 1:
            ranks.together(work, told, p, todo, saved)
        encoder = Encoder(p.encode, images)
        named = encoder.coder.scale() if p.encode.scale == "config" else None
        with arrays.writing(LATENTS) as latents:
            with Progress(rows(todo), "encode", "image", p.runtime.progress) as progress:
                sums = assemble(todo, encoder, latents, saved, progress)
            for split in SPLITS:
                latents.add(f"{split}/labels", images.read(f"{split}/labels"))
            scale = named or measured(*sums)
            latents.add("scale/mean", scale.mean.numpy())
            latents.add("scale/std", scale.std.numpy())
            latents.attributes(
                format=LATENTS_FORMAT,
                dataset=images.attribute("dataset"),
                classes=images.attribute("classes"),
                image_channels=encoder.coder.channels,
                image_height=encoder.coder.size[0],
                image_width=encoder.coder.size[1],
                autoencoder_sha256=sha256_of(AUTOENCODER, (autoencoder.CONFIG, autoencoder.WEIGHTS)),
                train_sha256=images.attribute("train_sha256"),
            )


if __name__ == "__main__":
    run(main, "encode")

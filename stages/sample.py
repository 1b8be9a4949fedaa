"""Noise integrated to latents and decoded, real images through the autoencoder, and through their noise → data/samples.h5."""

from functools import partial

import numpy as np
import torch

from lfm.generator import Generator, batches, load_generator
from lfm.model import check_latents
from lfm.uses import Uses
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import (
    AUTOENCODER,
    FLOW,
    LATENTS,
    LATENTS_FORMAT,
    PROGRESS_FORMAT,
    SAMPLES,
    SAMPLES_FORMAT,
)
from pipeline.machine import scratch
from pipeline.machine.scratch import Scratch
from pipeline.params import Params
from pipeline.progress import Progress
from pipeline.run import run

REAL = ("validation", "test")
SHOWN = 16  # classes, at most, of which pictures are made: class transfer takes their square


def drawn(generator: Generator, rows: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """One batch: its images, and how many rows went through the transformer for them."""
    before = generator.passes
    images = generator.decode(generator.integrate(rows, labels).x[-1])
    return {"images": images, "passes": np.array(generator.passes - before)}


def generate(
    generator: Generator, labels: np.ndarray, out: arrays.ArrayWriter, saved: Scratch, progress: Progress
) -> float:
    """An image for each label. Returns how often each went through the transformer."""
    out.add("generated/labels", labels)
    out.create("generated/images", (len(labels), *generator.flow.image), np.uint8)
    passes, padded = 0, 0
    for count, rows in batches(len(labels), generator.p.batch_size):
        found = saved.part(f"generated-{rows[0]}", partial(drawn, generator, rows, labels[rows]))
        out.put("generated/images", rows[0], found["images"][:count])
        passes, padded = passes + int(found["passes"]), padded + len(rows)
        progress.advance(count)
    return passes / padded


def decoded(generator: Generator, mean: np.ndarray) -> dict[str, np.ndarray]:
    """One batch of latents as images."""
    return {"images": generator.decode(generator.flow.scale.normalise(torch.from_numpy(mean)))}


def reconstruct(
    generator: Generator, latents: arrays.ArrayFile, out: arrays.ArrayWriter, saved: Scratch, progress: Progress
) -> None:
    """Real images through the autoencoder: the mean of each posterior, decoded."""
    for split in REAL:
        mean = latents.read(f"{split}/mean")
        out.create(f"reconstructed/{split}", (len(mean), *generator.flow.image), np.uint8)
        for count, rows in batches(len(mean), generator.p.batch_size):
            found = saved.part(f"{split}-{rows[0]}", partial(decoded, generator, mean[rows]))
            out.put(f"reconstructed/{split}", rows[0], found["images"][:count])
            progress.advance(count)


def shown(labels: np.ndarray) -> np.ndarray:
    """The classes of which pictures are made, the first ones."""
    return np.unique(labels)[:SHOWN]


def on_the_way(generator: Generator, labels: np.ndarray, out: arrays.ArrayWriter) -> None:
    """The first noise of each class, decoded at the grid's times nearest to those asked for."""
    p = generator.p
    first = np.array([np.flatnonzero(labels == label)[0] for label in shown(labels)])
    grid = generator.grid.numpy()
    at = sorted({int(np.abs(grid - t * generator.flow.end).argmin()) for t in p.trajectory_times})
    states = generator.integrate(first, labels[first], at).x
    out.add("trajectories/times", grid[at])
    out.add("trajectories/images", np.stack([generator.decode(x) for x in states]))


def through_noise(generator: Generator, latents: arrays.ArrayFile, out: arrays.ArrayWriter) -> float:
    """Inversion, interpolation and class transfer of a test image of each class. Returns the largest error of a latent
    after the way to its noise and back."""
    labels, mean = latents.read("test/labels"), latents.read("test/mean")
    first, second = (np.array([np.flatnonzero(labels == c)[n] for c in shown(labels)]) for n in (0, 1))
    x1, others = (
        generator.flow.scale.normalise(torch.from_numpy(mean[rows])).to(generator.where)
        for rows in (first, np.roll(second, -1))
    )
    uses = Uses(generator)
    back, error = uses.round_trips(x1, labels[first])
    out.add("inversion/rows", first)
    out.add("inversion/decoded", generator.decode(x1))
    out.add("inversion/returned", back)
    out.add("interpolations/images", uses.interpolations(x1, others))
    targets = shown(labels) if generator.flow.transformer.label is not None else labels[:1]
    out.add("transfer/targets", targets)
    out.add("transfer/images", uses.transfers(x1, labels[first], targets))
    return error


def main(p: Params) -> None:
    with (
        arrays.reading(LATENTS, LATENTS_FORMAT) as latents,
        arrays.reading(FLOW / "progress.h5", PROGRESS_FORMAT) as snapshots,
    ):
        generator = load_generator(FLOW, AUTOENCODER, p.sample)
        check_latents(generator.flow, latents)
        labels = latents.read("test/labels")
        total = len(labels) + sum(latents.shape(f"{split}/labels")[0] for split in REAL)
        with scratch.opened() as saved, arrays.writing(SAMPLES) as out:
            with Progress(total, "sample", "image", p.runtime.progress) as progress:
                passes = generate(generator, labels, out, saved, progress)
                reconstruct(generator, latents, out, saved, progress)
            on_the_way(generator, labels, out)
            error = through_noise(generator, latents, out)
            out.add("progress/steps", snapshots.read("steps"))
            states = (generator.decode(torch.from_numpy(x)) for x in snapshots.read("latents"))
            out.add("progress/images", np.stack(list(states)))
            out.attributes(
                format=SAMPLES_FORMAT,
                nfe=passes,
                inversion_error=error,
                labelled=int(generator.flow.transformer.label is not None),
                seed=p.sample.seed,
                dataset=latents.attribute("dataset"),
            )


if __name__ == "__main__":
    run(main, "sample")

"""Which pictures the report has: one function each, in the order of the page. A new one needs its entry here alone."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.errors import UserError
from pipeline.page.pictures import Picture
from pipeline.page.tables import Table

WIDE = 10
LABELS = 256  # a label is a byte


class Sources(NamedTuple):
    """What pictures are made of."""

    images: ArrayFile
    samples: ArrayFile
    generated: Table  # a row for each generated image
    test: Table  # a row for each test image
    classes: dict[int, str]  # label → its number, and its name where it has one

    @property
    def labels(self) -> np.ndarray:
        """Labels of generated images, as many as `sample` draws trajectories for: (labels,) int."""
        return np.unique(self.generated["label"])[: self.samples.shape("inversion/rows")[0]].astype(int)


def class_names(images: ArrayFile, path: Path) -> dict[int, str]:
    """Label → its number, and its name where it has one. Raises `UserError` where not all classes are named."""
    count = min(int(images.attribute("classes")), LABELS)
    names = str(images.attributes["class_names"]).split("\n") if "class_names" in images.attributes else [""] * count
    if len(names) != count:
        raise UserError(f"{path}: names {len(names)} of {count} classes; delete it and run `dvc repro`")
    return {label: f"{label} {name}".strip() for label, name in enumerate(names)}


GALLERY: list[Callable[[Sources], Picture]] = []


def picture(draw: Callable[[Sources], Picture]) -> Callable[[Sources], Picture]:
    """Adds a picture to the report."""
    GALLERY.append(draw)
    return draw


@picture
def first(s: Sources) -> Picture:
    images = s.samples.read("generated/images", 0, 5 * WIDE)
    return Picture("random", "Uncurated samples: the first ones drawn", in_rows(images))


@picture
def first_by_class(s: Sources) -> Picture:
    members = [np.flatnonzero(s.generated["label"] == label)[:WIDE] for label in s.labels]
    count = min(map(len, members))
    grid = np.stack([take(s.samples, "generated/images", rows[:count]) for rows in members])
    return Picture(
        "samples", "Uncurated samples: the first of each class", grid, rows=[s.classes.get(c, str(c)) for c in s.labels]
    )


@picture
def few(s: Sources) -> Picture:
    """The first noise of each class through the flow map, and through the flow."""
    first = np.array([np.flatnonzero(s.generated["label"] == label)[0] for label in s.labels])
    numbers = s.samples.read("few/evaluations")
    grid = [*take(s.samples, "few/images", first).swapaxes(0, 1), take(s.samples, "generated/images", first)]
    captions = [f"{n} evaluation{'s' if n > 1 else ''}" for n in numbers]
    nfe = s.samples.attribute("nfe")
    title = "The same noise through the flow map in few evaluations, and through the flow"
    return Picture("few", title, np.stack(grid), rows=[*captions, f"flow, {nfe:g}"])


@picture
def trajectories(s: Sources) -> Picture:
    times = [f"t = {t:g}" for t in s.samples.read("trajectories/times")]
    grid = s.samples.read("trajectories/images").swapaxes(0, 1)  # (classes, times, C, H, W)
    return Picture("trajectories", "From noise to image", grid, columns=times)


@picture
def progress(s: Sources) -> Picture:
    steps = [f"step {step:,}" for step in s.samples.read("progress/steps")]
    return Picture(
        "progress", "Samples from the same noise during training", s.samples.read("progress/images"), rows=steps
    )


@picture
def reconstructions(s: Sources) -> Picture:
    before, after = (f.read(n, 0, 4 * WIDE) for f, n in ((s.images, "test/images"), (s.samples, "reconstructed/test")))
    grid = np.stack([in_rows(before), in_rows(after)], 1).reshape(-1, *in_rows(before).shape[1:])  # in turns
    captions = ["original", "decoded"] * (len(grid) // 2)
    return Picture("reconstructions", "Test images and their reconstructions by the autoencoder", grid, captions)


@picture
def inversion(s: Sources) -> Picture:
    originals = take(s.images, "test/images", s.samples.read("inversion/rows"))
    grid = np.stack([originals, *(s.samples.read(f"inversion/{name}") for name in ("decoded", "returned"))])
    captions = ["original", "decoded", "to noise and back"]
    return Picture("inversion", "Inversion: test images to noise and back", grid, captions)


@picture
def interpolations(s: Sources) -> Picture:
    images = s.samples.read("interpolations/images")
    return Picture("interpolations", "Interpolations between two test images, in the space of noise", images)


@picture
def transfer(s: Sources) -> Picture:
    decoded, images = s.samples.read("inversion/decoded"), s.samples.read("transfer/images")
    labelled = s.samples.attribute("labelled")
    targets = [f"as {target}" if labelled else "again" for target in s.samples.read("transfer/targets")]
    title = "Class transfer: the noise of a test image, integrated with another label"
    return Picture("transfer", title, np.concatenate([decoded[:, None], images], 1), columns=["real", *targets])


@picture
def certainty(s: Sources) -> Picture:
    """Three of each class that the classifier is most certain of, and three that it is least certain of; fewer of a rare
    class."""
    members = [np.flatnonzero(s.generated["label"] == label) for label in s.labels]
    rising = [rows[np.argsort(s.generated["log_odds"][rows], kind="stable")] for rows in members]
    n = min(3, *map(len, rising))
    extremes = np.stack([np.concatenate([rows[::-1][:n], rows[:n]]) for rows in rising], 1)  # (2 n, classes)
    grid = np.stack([take(s.samples, "generated/images", rows) for rows in extremes])
    captions = [caption for name in ("most", "least") for caption in (name, *[""] * (n - 1))]
    title = "Samples that the classifier is most and least certain of"
    return Picture("certainty", title, grid, rows=captions, columns=[str(c) for c in s.labels])


@picture
def neighbours(s: Sources) -> Picture:
    """The generated images nearest to a training image, and as many test images for comparison."""
    grid = []
    for table, file, name in ((s.generated, s.samples, "generated/images"), (s.test, s.images, "test/images")):
        closest = np.argsort(table["distance"], kind="stable")[:WIDE]
        grid += [take(file, name, closest), take(s.images, "train/images", table["nearest_training"][closest])]
    captions = ["generated", "training", "test", "training"]
    return Picture("neighbours", "Images nearest to a training image, in pixel space", np.stack(grid), rows=captions)


def in_rows(images: np.ndarray) -> np.ndarray:
    """Images in full rows of ten, or in one row where there are fewer: (R, K, C, H, W)."""
    wide = min(WIDE, len(images))
    return images[: len(images) // wide * wide].reshape(-1, wide, *images.shape[1:])


def take(file: ArrayFile, name: str, rows: np.ndarray) -> np.ndarray:
    """Some rows of an array, in the order of `rows`: (rows, …)."""
    return np.concatenate([file.read(name, int(row), int(row) + 1) for row in rows])

"""Not a stage: which images the report shows. One function a picture; `GALLERY` is the order of the page."""

from typing import NamedTuple

import numpy as np

from pipeline.artifacts.files import IMAGES
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.errors import UserError
from pipeline.page.pictures import Picture

WIDE = 10
LABELS = 256  # a label is a byte


class Sources(NamedTuple):
    """What pictures are made of."""

    images: ArrayFile
    samples: ArrayFile
    generated: dict[str, np.ndarray]  # columns of reports/generated.csv
    test: dict[str, np.ndarray]
    classes: dict[int, str]  # what stands for a label: its number, and its name where it has one

    @property
    def shown(self) -> np.ndarray:
        """Labels of generated images, as many as `sample` shows."""
        return np.unique(self.generated["label"])[: self.samples.shape("inversion/rows")[0]].astype(int)


def named(images: ArrayFile) -> dict[int, str]:
    """What stands for a label: its number, and its name where it has one."""
    count = min(int(images.attribute("classes")), LABELS)
    names = str(images.attributes["class_names"]).split("\n") if "class_names" in images.attributes else [""] * count
    if len(names) != count:
        raise UserError(f"{IMAGES}: names {len(names)} of {count} classes; delete it and run `dvc repro`")
    return {label: f"{label} {name}".strip() for label, name in enumerate(names)}


def unchosen(s: Sources) -> Picture:
    images = s.samples.read("generated/images", 0, 5 * WIDE)
    return Picture("random", "Generated, not chosen: the first ones drawn", in_rows(images))


def by_class(s: Sources) -> Picture:
    labels = s.generated["label"].astype(int)
    places = [np.flatnonzero(labels == label)[:WIDE] for label in s.shown]
    grid = np.stack([_rows(s.samples, "generated/images", p[: min(map(len, places))]) for p in places])
    return Picture("samples", "The first of every class", grid, rows=[s.classes.get(int(c), str(c)) for c in s.shown])


def certainty(s: Sources) -> Picture:
    """Three of each class that the classifier is surest of, and three that it is least sure of; fewer of a rare class."""
    members = [np.flatnonzero(s.generated["label"] == label) for label in s.shown]
    rising = [m[np.argsort(s.generated["log_odds"][m], kind="stable")] for m in members]
    n = min(3, *map(len, rising))
    places = np.stack([np.concatenate([m[::-1][:n], m[:n]]) for m in rising], 1)  # (2 n, classes)
    grid = np.stack([_rows(s.samples, "generated/images", row) for row in places])
    captions = [caption for name in ("most", "least") for caption in (name, *[""] * (n - 1))]
    title = "The classifier is most and least certain of these"
    return Picture("certainty", title, grid, rows=captions, columns=[str(c) for c in s.shown])


def reconstructions(s: Sources) -> Picture:
    before, after = (f.read(n, 0, 4 * WIDE) for f, n in ((s.images, "test/images"), (s.samples, "reconstructed/test")))
    pairs = [row for pair in zip(in_rows(before), in_rows(after), strict=True) for row in pair]
    captions = ["original", "decoded"] * (len(pairs) // 2)
    return Picture("reconstructions", "Real images, and through the autoencoder", np.stack(pairs), captions)


def trajectories(s: Sources) -> Picture:
    times = [f"t = {t:g}" for t in s.samples.read("trajectories/times")]
    grid = s.samples.read("trajectories/images").swapaxes(0, 1)  # (classes, times, C, H, W)
    return Picture("trajectories", "From noise to image", grid, columns=times)


def progress(s: Sources) -> Picture:
    steps = [f"step {step:,}" for step in s.samples.read("progress/steps")]
    return Picture("progress", "The same noises across the training", s.samples.read("progress/images"), rows=steps)


def inversion(s: Sources) -> Picture:
    rows = [_rows(s.images, "test/images", s.samples.read("inversion/rows")),
            *(s.samples.read(f"inversion/{name}") for name in ("decoded", "returned"))]  # fmt: skip
    captions = ["original", "decoded", "to noise and back"]
    return Picture("inversion", "Real images, to their noise and back", np.stack(rows), captions)


def interpolations(s: Sources) -> Picture:
    images = s.samples.read("interpolations/images")
    return Picture("interpolations", "From one real image to another, through the noise between theirs", images)


def transfer(s: Sources) -> Picture:
    decoded, images = s.samples.read("inversion/decoded"), s.samples.read("transfer/images")
    labelled = s.samples.attribute("labelled")
    targets = [f"as {target}" if labelled else "again" for target in s.samples.read("transfer/targets")]
    title = "Class transfer: the noise of a real image, followed with another label"
    return Picture("transfer", title, np.concatenate([decoded[:, None], images], 1), columns=["real", *targets])


def neighbours(s: Sources) -> Picture:
    """The generated images nearest to a training image, and as many test images: what unseen ones look like there."""
    rows = []
    for table, file, name in ((s.generated, s.samples, "generated/images"), (s.test, s.images, "test/images")):
        closest = np.argsort(table["distance"], kind="stable")[:WIDE]
        rows += [_rows(file, name, closest), _rows(s.images, "train/images", table["nearest_training"][closest])]
    captions = ["generated", "training", "test", "training"]
    return Picture("neighbours", "Nearest to a training image, in pixels", np.stack(rows), rows=captions)


def in_rows(images: np.ndarray) -> np.ndarray:
    """Images in full rows of ten, or in one row where there are fewer: (R, K, C, H, W)."""
    wide = min(WIDE, len(images))
    return images[: len(images) // wide * wide].reshape(-1, wide, *images.shape[1:])


def _rows(file: ArrayFile, name: str, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([file.read(name, int(row), int(row) + 1) for row in rows])


GALLERY = (
    unchosen, by_class, trajectories, progress, reconstructions, inversion, interpolations, transfer, certainty, neighbours,
)  # fmt: skip

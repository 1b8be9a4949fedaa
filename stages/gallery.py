"""Not a stage: which images the report shows. One function a picture; `GALLERY` is the order of the page."""

from typing import NamedTuple

import numpy as np

from pipeline.arrays import ArrayFile
from pipeline.pictures import Picture

WIDE = 10


class Sources(NamedTuple):
    """What pictures are made of."""

    images: ArrayFile
    samples: ArrayFile
    generated: dict[str, np.ndarray]  # columns of reports/generated.csv
    test: dict[str, np.ndarray]


def unchosen(s: Sources) -> Picture:
    images = s.samples.read("generated/images", 0, 5 * WIDE)
    return Picture("random", "Generated, not chosen: the first ones drawn", images.reshape(-1, WIDE, *images.shape[1:]))


def by_class(s: Sources) -> Picture:
    labels = s.generated["label"].astype(int)
    places = [np.flatnonzero(labels == label)[:WIDE] for label in np.unique(labels)]
    grid = np.stack([_rows(s.samples, "generated/images", p[: min(map(len, places))]) for p in places])
    return Picture("samples", "The first of every class", grid, rows=[str(label) for label in np.unique(labels)])


def certainty(s: Sources) -> Picture:
    """Three of each class that the classifier is surest of, and three that it is least sure of; fewer of a rare class."""
    classes = np.unique(s.generated["label"])
    members = [np.flatnonzero(s.generated["label"] == label) for label in classes]
    rising = [m[np.argsort(s.generated["log_odds"][m], kind="stable")] for m in members]
    n = min(3, *map(len, rising))
    places = np.stack([np.concatenate([m[::-1][:n], m[:n]]) for m in rising], 1)  # (2 n, classes)
    grid = np.stack([_rows(s.samples, "generated/images", row) for row in places])
    captions = [caption for name in ("most", "least") for caption in (name, *[""] * (n - 1))]
    title = "The classifier is most and least certain of these"
    return Picture("certainty", title, grid, rows=captions, columns=[f"{c:g}" for c in classes])


def reconstructions(s: Sources) -> Picture:
    before, after = (f.read(n, 0, 4 * WIDE) for f, n in ((s.images, "test/images"), (s.samples, "reconstructed/test")))
    pairs = [a[i : i + WIDE] for i in range(0, len(before), WIDE) for a in (before, after)]
    return Picture(
        "reconstructions", "Real images, and through the autoencoder", np.stack(pairs), ["original", "decoded"] * 4
    )


def trajectories(s: Sources) -> Picture:
    times = [f"t = {t:g}" for t in s.samples.read("trajectories/times")]
    grid = s.samples.read("trajectories/images").swapaxes(0, 1)  # (classes, times, C, H, W)
    return Picture("trajectories", "From noise to digit", grid, columns=times)


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
    title = "One hand, ten digits: the noise of a real image, followed with another label"
    return Picture("transfer", title, np.concatenate([decoded[:, None], images], 1), columns=["real", *targets])


def neighbours(s: Sources) -> Picture:
    """The generated images nearest to a training image, and as many test images: what unseen digits look like there."""
    rows = []
    for table, file, name in ((s.generated, s.samples, "generated/images"), (s.test, s.images, "test/images")):
        closest = np.argsort(table["distance"], kind="stable")[:WIDE]
        rows += [_rows(file, name, closest), _rows(s.images, "train/images", table["nearest_training"][closest])]
    captions = ["generated", "training", "test", "training"]
    return Picture("neighbours", "Nearest to a training image, in pixels", np.stack(rows), rows=captions)


def _rows(file: ArrayFile, name: str, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([file.read(name, int(row), int(row) + 1) for row in rows])


GALLERY = (
    unchosen, by_class, trajectories, progress, reconstructions, inversion, interpolations, transfer, certainty, neighbours,
)  # fmt: skip

"""The verdict's false alarms, its power, and the standard errors of Fréchet distances, measured on real images. The tables
stand in docs/metrics.md.

A perfect generator is played by training images: a trial draws three disjoint sets of N images with equal class counts, one
as generated and one as validation images from those not for test, one from the test images. All other images not for test
count as the training set.

After `dvc repro fetch classifier`: python -m benchmarks.verdict [N ...]; about an hour on two cores.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from lfm import random
from lfm.evaluation.metrics import frechet_distance, frechet_error
from lfm.evaluation.neighbours import memorised, nearest
from lfm.evaluation.protocol import Settings, View, check_all, flat, view
from lfm.evaluation.verdict import Condition
from lfm.nets.classifier import Classifier
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5, images

IMAGES, CLASSIFIER = Path("data/images.h5"), Path("models/classifier")
TRIALS = {300: 500, 2000: 250, 10_000: 60}  # of real images; a fiftieth of them, or 3, of each spoilt set
NEAREST_QUANTILE = 0.01
NEIGHBOURS = 16  # of an image, kept: at least one of them is a training image, in every trial

Verdict = tuple[list[Condition], list[Condition]]
Set = tuple[np.ndarray, np.ndarray]  # images (N, 1, 28, 28) uint8, and the labels asked for (N,)


def missing(x: np.ndarray, y: np.ndarray) -> Set:
    """Ones where sevens were asked for."""
    rows = np.arange(len(y))
    rows[y == 7] = np.resize(np.flatnonzero(y == 1), (y == 7).sum())
    return x[rows], y


def noisy(x: np.ndarray, y: np.ndarray) -> Set:
    noise = np.random.default_rng(0).normal(0, 25, x.shape)
    return (x + noise).clip(0, 255).astype(np.uint8), y


def relabelled(x: np.ndarray, y: np.ndarray, share: float = 1.0) -> Set:
    """Labels asked for, shuffled among a share of the images."""
    g, labels = np.random.default_rng(0), y.copy()
    rows = g.permutation(len(y))[: round(share * len(y))]
    labels[rows] = y[g.permutation(rows)]
    return x, labels


SPOILT: dict[str, Callable[[np.ndarray, np.ndarray], Set]] = {
    "blurred by 0.7 pixels": lambda x, y: (gaussian_filter(x, (0, 0, 0.7, 0.7)), y),
    "moved by 1 pixel": lambda x, y: (np.roll(x, 1, axis=-1), y),
    "noise of 25 grey levels": noisy,
    "ones in place of sevens": missing,
    "labels shuffled": relabelled,
    "a tenth of the labels shuffled": lambda x, y: relabelled(x, y, 0.1),
}
COPIES = {"training images": 1.0, "a tenth training images": 0.1}  # shares of copies


class Real(NamedTuple):
    """Real images, and what the protocol sees of them."""

    images: np.ndarray
    view: View
    near: np.ndarray  # (N, NEIGHBOURS) the nearest images not for test,
    distance: np.ndarray  # and how far they are

    def from_training(self, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Distances to the nearest training image, (len(rows),)."""
        first = (~drawn[self.near[rows]]).argmax(1)
        return self.distance[rows, first]


class World:
    """All real images, and the trials that are made with them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.classifier = load_model(CLASSIFIER, Classifier)
        with hdf5.reading(IMAGES, images.FORMAT) as file:
            x, y = ({s: file.read(f"{s}/{a}") for s in hdf5.SPLITS} for a in ("images", "labels"))
        self.components = PCA(settings.pixel_components, svd_solver="covariance_eigh").fit(flat(x["train"]))
        pool = np.concatenate([x["train"], x["validation"]]), np.concatenate([y["train"], y["validation"]])
        views = {"pool": self.see(*pool), "test": self.see(x["test"], y["test"])}
        search = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(views["pool"].pixels.astype(np.float32))
        distance, near = search.kneighbors()  # of others: an image is not its own neighbour
        self.pool = Real(pool[0], views["pool"], near, distance)
        distance, near = search.kneighbors(views["test"].pixels.astype(np.float32))
        self.test = Real(x["test"], views["test"], near, distance)

    def see(self, x: np.ndarray, y: np.ndarray) -> View:
        return view(self.classifier, self.components, x, y)

    def draw(self, n: int, trial: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the generated, the validation and the test images, of equal class counts."""
        g = random.generator(self.settings.seed, f"trial/{n}", trial)
        test = g.permutation(len(self.test.images))[:n]
        asked, order = np.bincount(self.test.view.labels[test]), g.permutation(len(self.pool.images))
        labels = self.pool.view.labels[order]
        of_class = [order[labels == c][: 2 * count] for c, count in enumerate(asked)]
        generated, validation = (np.concatenate([rows[i::2] for rows in of_class]) for i in (0, 1))
        return generated, validation, test

    def judge(
        self, n: int, trial: int, spoil: Callable[[np.ndarray, np.ndarray], Set] | None = None, copies: float = 0
    ) -> Verdict:
        """What the protocol says of a trial's generated images, as they are, spoilt, or a share of them copied from training
        images."""
        generated, validation, test = self.draw(n, trial)
        sets = {
            "generated": self.pool.view.rows(generated),
            "validation": self.pool.view.rows(validation),
            "test": self.test.view.rows(test),
        }
        drawn = np.zeros(len(self.pool.images), bool)
        drawn[validation] = drawn[generated[round(copies * n) :]] = True
        close = {
            "generated": self.pool.from_training(generated, drawn),
            "validation": self.pool.from_training(validation, drawn),
            "test": self.test.from_training(test, drawn),
        }
        close["generated"][: round(copies * n)] = 0
        if spoil:
            sets["generated"] = self.see(*spoil(self.pool.images[generated], self.pool.view.labels[generated]))
            close["generated"] = nearest(sets["generated"].pixels, self.pool.view.pixels[~drawn])[1]
        shares = {name: 100 * memorised(d, close["test"], NEAREST_QUANTILE) for name, d in close.items()}
        return check_all(sets, shares, self.settings)

    def frechet(self, n: int, trial: int) -> tuple[float, float]:
        """Fréchet distance of a trial's generated from its validation images, and its standard error."""
        x, y = (self.pool.view.rows(rows) for rows in self.draw(n, trial)[:2])  # by class, as it should be
        error = frechet_error(x.features, y.features, x.strata, y.strata)
        return frechet_distance(*(torch.from_numpy(z.features) for z in (x, y))), error


def flagged(found: Verdict) -> set[str]:
    """The checks that do not hold."""
    return {c.name for group in found for c in group if not c.holds}


def rates(found: list[Verdict]) -> str:
    """In how many percent of the trials some check did not hold, and each."""
    counts = Counter(name for each in found for name in flagged(each))
    some = sum(bool(flagged(each)) for each in found)
    each = ", ".join(f"{name} {100 * count / len(found):.3g}" for name, count in counts.most_common())
    return f"{100 * some / len(found):.1f} ({some} of {len(found)}) | {each or '–'}"


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or list(TRIALS)
    world = World(Settings())
    print("| images | Fréchet distance of real images | sd over trials | standard error ÷ sd |\n|---|---|---|---|")
    for n in sizes:
        distances, errors = np.array([world.frechet(n, trial) for trial in range(TRIALS[n])]).T
        sd = distances.std(ddof=1)
        print(
            f"| {n:,} | {distances.mean():.5f} | {sd:.5f} | {np.sqrt(np.square(errors).mean()) / sd:.2f} |", flush=True
        )
    print("\n| images | generated | flagged, % of trials | by which check, % |\n|---|---|---|---|")
    for n in sizes:
        print(f"| {n:,} | real images | {rates([world.judge(n, i) for i in range(TRIALS[n])])} |", flush=True)
        few = range(max(3, TRIALS[n] // 50))
        for name, spoil in SPOILT.items():
            print(f"| {n:,} | {name} | {rates([world.judge(n, i, spoil) for i in few])} |", flush=True)
        for name, copies in COPIES.items():
            print(f"| {n:,} | {name} | {rates([world.judge(n, i, copies=copies) for i in few])} |", flush=True)


if __name__ == "__main__":
    main()

"""The verdict's false alarms, its power, and the standard errors of Fréchet distances, measured on real images. The tables
stand in docs/metrics.md.

A perfect generator is played by training images: a trial draws three disjoint sets of N images with equal class counts, one
as generated and one as validation images from those not for test, one from the test images. All other images not for test
count as the training set.

After `dvc repro fetch classifier`: python -m benchmarks.verdict [N ...] [--real]; about an hour on two cores. Nearest
neighbours among all images are found once: those within the set of a trial are among them.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from lfm import random
from lfm.evaluation import neighbours
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
NEIGHBOURS = 16  # of an image, by pixels, kept: at least one of them is a training image, in every trial
BALLS = 128  # of an image, by features, kept: enough of them are in the image's set, in most cases of 10,000 images

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


class Near(NamedTuple):
    """The nearest others of every image, nearest first."""

    rows: np.ndarray  # (N, n)
    distance: np.ndarray  # (N, n)

    @classmethod
    def of(cls, x: np.ndarray, others: np.ndarray, n: int) -> "Near":
        """Chosen in float32, measured in float64. Where `others` is x itself, an image is none of its own neighbours."""
        own, centre = x is others, others.mean(0)
        searched = torch.from_numpy(others - centre).float()
        rows, distance = [], []
        for start in range(0, len(x), 500):
            part = x[start : start + 500]
            found = torch.cdist(torch.from_numpy(part - centre).float(), searched)
            if own:
                found[range(len(part)), range(start, start + len(part))] = torch.inf
            near = found.topk(n, largest=False).indices.numpy()
            far = np.linalg.norm(others[near] - part[:, None], axis=-1)
            order = far.argsort(1)
            rows.append(np.take_along_axis(near, order, 1))
            distance.append(np.take_along_axis(far, order, 1))
        return cls(np.concatenate(rows), np.concatenate(distance))


class Real(NamedTuple):
    """Real images, and what the protocol sees of them."""

    images: np.ndarray
    view: View
    training: Near  # by pixels, images not for test
    alike: Near  # by features, images of the same kind

    def from_training(self, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Distances to the nearest training image, (len(rows),)."""
        first = (~drawn[self.training.rows[rows]]).argmax(1)
        return self.training.distance[rows, first]

    def radii(self, rows: np.ndarray, k: int) -> np.ndarray:
        """`lfm.evaluation.neighbours.radii` of the set that has these rows."""
        drawn = np.zeros(len(self.images), bool)
        drawn[rows] = True
        count = drawn[self.alike.rows[rows]].cumsum(1)
        radii = self.alike.distance[rows, (count == k).argmax(1)]
        few = count[:, -1] < k
        if few.any():
            x = self.view.features[rows]
            search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(x)  # itself is one of them
            radii[few] = search.kneighbors(x[few])[0][:, -1]
        return radii


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
        self.pool, self.test = (
            Real(
                pictures,
                views[name],
                Near.of(views[name].pixels, views["pool"].pixels, NEIGHBOURS),
                Near.of(views[name].features, views[name].features, BALLS),
            )
            for name, pictures in (("pool", pool[0]), ("test", x["test"]))
        )

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
        k, brute = self.settings.neighbours, neighbours.radii
        known = {
            id(sets[name].features): real.radii(rows, k)
            for name, real, rows in (
                ("validation", self.pool, validation),
                ("test", self.test, test),
                *([] if spoil else [("generated", self.pool, generated)]),
            )
        }
        with patch.object(neighbours, "radii", lambda x, k: known[id(x)] if id(x) in known else brute(x, k)):
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[*TRIALS], metavar="N", help="images in each set")
    parser.add_argument("--real", action="store_true", help="no spoilt sets")
    flags = parser.parse_args()
    world = World(Settings())
    print("| images | Fréchet distance of real images | sd over trials | standard error ÷ sd |\n|---|---|---|---|")
    for n in flags.sizes:
        distances, errors = np.array([world.frechet(n, trial) for trial in range(TRIALS[n])]).T
        sd = distances.std(ddof=1)
        print(
            f"| {n:,} | {distances.mean():.5f} | {sd:.5f} | {np.sqrt(np.square(errors).mean()) / sd:.2f} |", flush=True
        )
    print("\n| images | generated | flagged, % of trials | by which check, % |\n|---|---|---|---|")
    for n in flags.sizes:
        found = list[Verdict]()
        for trial in range(TRIALS[n]):
            found.append(world.judge(n, trial))
            print(f"{n:,} images, trial {trial + 1}: {', '.join(flagged(found[-1])) or 'not flagged'}", file=sys.stderr)
        print(f"| {n:,} | real images | {rates(found)} |", flush=True)
        if flags.real:
            continue
        few = range(max(3, TRIALS[n] // 50))
        for name, spoil in SPOILT.items():
            print(f"| {n:,} | {name} | {rates([world.judge(n, i, spoil) for i in few])} |", flush=True)
        for name, copies in COPIES.items():
            print(f"| {n:,} | {name} | {rates([world.judge(n, i, copies=copies) for i in few])} |", flush=True)


if __name__ == "__main__":
    main()

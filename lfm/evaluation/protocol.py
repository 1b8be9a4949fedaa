"""The protocol by which sets of images are compared. Views of images in, figures out; all draws are keyed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial, reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from lfm import random
from lfm.errors import ConfigError
from lfm.evaluation import metrics
from lfm.evaluation.metrics import Comparison, Moments, frechet
from lfm.evaluation.neighbours import Manifolds, manifolds
from lfm.evaluation.verdict import Condition, alarms, indistinguishable
from lfm.nets.classifier import Classifier, to_pixels

# The rows of the table: what is compared with what.
ROWS = {
    "validation": ("validation", "test"),  # the floor: two sets of real images
    "reconstructed": ("reconstructed", "test"),  # what the autoencoder allows
    "generated": ("generated", "test"),
    "generated_reconstructed": ("generated", "reconstructed"),  # what the flow itself costs
}
PARTS = (8, 4, 2, 1)  # a set is cut into so many for the Fréchet distance against 1/N
FEWEST = 2 * max(PARTS)  # images of a set: a covariance takes two
SIDE = 32  # pixels are compared in images of at most this side


class Settings(NamedTuple):
    """How sets are compared."""

    seed: int = 0  # draws the resamples, and the order in which sets are halved and cut
    bootstrap: int = 100  # resamples behind the standard deviation of a Fréchet distance
    kid_blocks: int = 10  # disjoint blocks behind the kernel distance and its error
    neighbours: int = 5  # the ball of an image reaches to this neighbour
    pixel_components: int = 128  # principal components of the pixels


class Work(Protocol):
    """Who does the work: a stage keeps parts of it and shows its progress."""

    def part(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What `make` returns, or what it returned under this name earlier."""

    def progress(self, total: int, what: str, unit: str) -> AbstractContextManager[Any]:
        """An object whose `advance(n)` moves on by n."""


class Quiet:
    """Keeps nothing and shows nothing."""

    def part(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return make()

    def progress(self, total: int, what: str, unit: str) -> AbstractContextManager[Any]:
        return nullcontext(self)

    def advance(self, n: int = 1) -> None:
        pass


class View(NamedTuple):
    """One set of images as everything here sees it."""

    labels: np.ndarray  # (N,) the classes asked for
    features: np.ndarray  # (N, 128) float64
    pixels: np.ndarray  # (N, P) principal components, float64
    logits: np.ndarray  # (N, classes)

    @property
    def recognised(self) -> np.ndarray:
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float((self.recognised == self.labels).mean())

    @property
    def log_odds(self) -> np.ndarray:
        """How sure the classifier is of the class asked for, (N,)."""
        rows = np.arange(len(self.labels))
        others = self.logits.copy()
        others[rows, self.labels] = -np.inf
        return self.logits[rows, self.labels] - reduce(np.logaddexp, others.T)


class Resampled(NamedTuple):
    """A set's moments in bootstrap resamples."""

    features: list[Moments]
    pixels: list[Moments]


def flat(images: np.ndarray) -> np.ndarray:
    """8-bit images → (N, pixels) in [0, 1], float64; large ones are averaged to 32×32 before, or their covariance would take
    more memory and time than all else."""
    if max(images.shape[2:]) > SIDE:
        parts = torch.from_numpy(images).split(500)
        images = np.concatenate([F.adaptive_avg_pool2d(part.float(), SIDE).numpy() for part in parts])
    return images.reshape(len(images), -1) / np.float64(255)


def check_sizes(s: Settings, fewest: int, training: np.ndarray) -> None:
    """Raises `ConfigError` where there are too few images for what is asked.

    Args:
        fewest: in the smallest set that is compared.
        training: what `flat` makes of the training images.
    """
    if fewest < FEWEST:
        raise ConfigError(
            f"evaluate: a set has {fewest} images; figures take at least {FEWEST}: add images to the data set"
        )
    limits = {"kid_blocks": fewest // 2, "neighbours": fewest - 1, "pixel_components": min(training.shape)}
    for key, most in limits.items():
        if (value := getattr(s, key)) > most:
            raise ConfigError(f"evaluate.{key} is {value}; with this many images it must be at most {most}")


@torch.inference_mode()
def view(
    classifier: Classifier,
    components: PCA,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 500,
    advance: Callable[[int], object] = lambda n: None,
) -> View:
    """Look at a set of images; the classifier works in float32."""
    device = next(classifier.parameters()).device
    parts = []
    for part in torch.from_numpy(images).split(batch_size):
        parts.append(classifier.features(to_pixels(part.to(device))))
        advance(len(part))
    features = torch.cat(parts)
    logits = classifier.head(features).double().cpu().numpy()
    return View(labels.astype(np.int64), features.double().cpu().numpy(), components.transform(flat(images)), logits)


def resample(images: View, name: str, s: Settings) -> Resampled:
    """Bootstrap within each class: class counts are matched between the sets, so they are nothing that varies."""
    drawn = Resampled([], [])
    classes = [np.flatnonzero(images.labels == label) for label in np.unique(images.labels)]
    for i in range(s.bootstrap):
        g = random.generator(s.seed, f"bootstrap/{name}", i)
        rows = np.concatenate([members[g.integers(len(members), size=len(members))] for members in classes])
        counts = np.bincount(rows, minlength=len(images.labels)).astype(np.float64)
        drawn.features.append(metrics.moments(images.features, counts))
        drawn.pixels.append(metrics.moments(images.pixels, counts))
    return drawn


class Order(NamedTuple):
    """The rows of a set, drawn."""

    random: np.ndarray  # (N,)
    grouped: np.ndarray  # (N,) by class, random within it: every n-th of them is a sample with the same class shares


def order(labels: np.ndarray, name: str, seed: int) -> Order:
    rows = random.permutation(seed, f"order/{name}", 0, len(labels)).numpy()
    return Order(rows, rows[np.argsort(labels[rows], kind="stable")])


class Findings(NamedTuple):
    """What the protocol says about generated images."""

    table: dict[str, Comparison]  # one a row of `ROWS`
    by_size: dict[str, list[float]]  # Fréchet distance of 1/PARTS of the images
    conditions: list[Condition]  # of being indistinguishable
    alarms: list[Condition]
    imbalance: float  # percent of generated images that would have to change class


def resampled_distances(a: Resampled, b: Resampled) -> np.ndarray:
    """Fréchet distances in every resample, (2, resamples): of features, of pixels.

    A resample's distance is biased upward, so their mean means nothing and only their spread is used.
    """
    return np.array([[frechet(x, y) for x, y in zip(*pair, strict=True)] for pair in zip(a, b, strict=True)])


def compare(
    a: View, b: View, orders: tuple[Order, Order], resampled: np.ndarray, scale: float, s: Settings
) -> tuple[Comparison, list[float]]:
    """One row of the table, and its Fréchet distance in smaller and smaller parts of the sets.

    Args:
        resampled: what `resampled_distances` returns.
        scale: features are divided by it before the kernel sees them: one for all, since some features are always 0.
    """
    rows_a, rows_b = (rows.grouped for rows in orders)
    x, y = a.features[rows_a], b.features[rows_b]
    by_parts = [metrics.frechet_of_parts(x, y, parts) for parts in PARTS]
    kid, kid_error = metrics.kernel_distance_of_blocks(
        a.features[orders[0].random] / scale, b.features[orders[1].random] / scale, s.kid_blocks
    )
    fd_sd, fd_pixels_sd = resampled.std(1, ddof=1)
    return Comparison(
        fd=by_parts[PARTS.index(1)],
        fd_sd=float(fd_sd),
        fd_unbiased=float(np.polyfit(PARTS, by_parts, 1, w=1 / np.sqrt(PARTS))[1]),
        fd_pixels=frechet(metrics.moments(a.pixels), metrics.moments(b.pixels)),
        fd_pixels_sd=float(fd_pixels_sd),
        kid=kid,
        kid_error=kid_error,
        manifolds=manifolds(y, x, s.neighbours),
        two_sample=100 * metrics.two_sample_accuracy(x, y),
        two_sample_pixels=100 * metrics.two_sample_accuracy(a.pixels[rows_a], b.pixels[rows_b]),
    ), by_parts


def spreads(sets: dict[str, View], s: Settings, work: Work) -> dict[str, np.ndarray]:
    """What `resampled_distances` returns for each row of the table."""
    drawn = cache(lambda name: resample(sets[name], name, s))

    def of_row(a: str, b: str) -> dict[str, np.ndarray]:
        return {"distances": resampled_distances(drawn(a), drawn(b))}

    spread = {}
    with work.progress(len(ROWS), "bootstrap", "row") as progress:
        for row, pair in ROWS.items():
            spread[row] = work.part(f"bootstrap-{row}", partial(of_row, *pair))["distances"]
            progress.advance()
    return spread


def _row(work: Work, row: str, make: Callable[[], tuple[Comparison, list[float]]]) -> tuple[Comparison, list[float]]:
    """What `compare` returns, as a part of the work."""

    def packed() -> dict[str, np.ndarray]:
        comparison, by_parts = make()
        return {k: np.array(v) for k, v in (comparison._asdict() | {"by_parts": by_parts}).items()}

    values = {k: v.tolist() for k, v in work.part(f"row-{row}", packed).items()}
    by_parts, cover = values.pop("by_parts"), Manifolds(*values.pop("manifolds"))
    return Comparison(manifolds=cover, **values), by_parts


def judge(sets: dict[str, View], memorised: dict[str, float], s: Settings, work: Work | None = None) -> Findings:
    """The whole protocol.

    Args:
        sets: generated, reconstructed (of validation), validation and test images.
        memorised: percent of the generated and of the validation images that lie close to a training image.
        work: who keeps what is done, row by row, and shows progress; by default nobody.
    """
    work = work or Quiet()
    spread = spreads(sets, s, work)
    orders = {name: order(images.labels, name, s.seed) for name, images in sets.items()}
    scale = float(np.sqrt(np.square(sets["test"].features).mean()))
    table, by_size = {}, {}
    with work.progress(len(ROWS), "comparisons", "row") as progress:
        for row, (a, b) in ROWS.items():
            make = partial(compare, sets[a], sets[b], (orders[a], orders[b]), spread[row], scale, s)
            table[row], by_size[row] = _row(work, row, make)
            progress.advance()
    excess_sd, excess_pixels_sd = map(float, (spread["generated"] - spread["validation"]).std(1, ddof=1))
    generated, real = table["generated"], table["validation"]
    off = 100 * metrics.imbalance(sets["generated"].recognised, sets["test"].recognised)
    return Findings(
        table,
        by_size,
        indistinguishable(generated, real, excess_sd, sets["generated"].accuracy, sets["test"].accuracy),
        alarms(generated, real, excess_pixels_sd, off, memorised["generated"], memorised["validation"]),
        off,
    )

"""The protocol by which sets of images are compared. Views of images in, figures out; all draws are keyed."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from lfm import random
from lfm.errors import ConfigError
from lfm.evaluation import metrics
from lfm.evaluation.metrics import Comparison, Difference
from lfm.evaluation.neighbours import Manifolds, manifolds_and_scores
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

    seed: int = 0  # draws the order in which sets are halved and cut
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
    matched: bool = True  # the labels were asked for, in the same numbers as the other sets'

    def rows(self, rows: np.ndarray) -> "View":
        """Some of the images."""
        return View(self.labels[rows], self.features[rows], self.pixels[rows], self.logits[rows], self.matched)

    @property
    def strata(self) -> np.ndarray:
        """Groups whose sizes do not vary from draw to draw, (N,)."""
        return self.labels if self.matched else np.zeros_like(self.labels)

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
def look(
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 500,
    advance: Callable[[int], object] = lambda n: None,
) -> View:
    """A set of images in a classifier's features alone; it works in float32. Raises `ConfigError` where they are not finite."""
    device = next(classifier.parameters()).device
    parts = []
    for part in torch.from_numpy(images).split(batch_size):
        parts.append(classifier.features(to_pixels(part.to(device))))
        advance(len(part))
    features = torch.cat(parts)
    if not bool(features.isfinite().all()):
        raise ConfigError("classifier: its features are not finite; fetch or train it again")
    logits = classifier.head(features).cpu().double().numpy()
    return View(labels.astype(np.int64), features.cpu().double().numpy(), np.empty((len(labels), 0)), logits)


def view(
    classifier: Classifier,
    components: PCA,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 500,
    advance: Callable[[int], object] = lambda n: None,
) -> View:
    """A set of images as the whole protocol sees it."""
    return look(classifier, images, labels, batch_size, advance)._replace(pixels=components.transform(flat(images)))


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


class Overlap(NamedTuple):
    """How one set lies in another: what both the table and the verdict need."""

    kids: np.ndarray  # (blocks,) kernel distances
    manifolds: Manifolds
    errors: Manifolds  # standard errors over draws of the first set


class Row(NamedTuple):
    """One row of the table."""

    comparison: Comparison
    by_parts: list[float]  # its Fréchet distance in smaller and smaller parts of the sets
    overlap: Overlap


def overlap(sets: dict[str, View], row: str, orders: dict[str, Order], s: Settings) -> Overlap:
    """For a row of the table."""
    a, b = (sets[name] for name in ROWS[row])
    rows_a, rows_b = (orders[name].random for name in ROWS[row])
    # Features are divided by one scale for all before the kernel sees them, since some features are always 0.
    scale = np.sqrt(np.square(sets["test"].features).mean())
    cover, scores = manifolds_and_scores(b.features, a.features, s.neighbours)
    return Overlap(
        metrics.kernel_distances(a.features[rows_a] / scale, b.features[rows_b] / scale, s.kid_blocks),
        cover,
        Manifolds(*metrics.standard_error(scores, a.strata).tolist()),
    )


def compare(sets: dict[str, View], row: str, orders: dict[str, Order], s: Settings) -> Row:
    """One row of the table."""
    found = overlap(sets, row, orders, s)
    names = ROWS[row]
    x, y = (sets[name].features[orders[name].grouped] for name in names)
    pixels = [sets[name].pixels[orders[name].grouped] for name in names]
    strata = [sets[name].strata[orders[name].grouped] for name in names]
    by_parts = [metrics.frechet_of_parts(x, y, parts) for parts in PARTS]
    kid = metrics.mean_of_blocks(found.kids)
    comparison = Comparison(
        fd=by_parts[PARTS.index(1)],
        fd_error=metrics.frechet_error(x, y, *strata),
        fd_unbiased=float(np.polyfit(PARTS, by_parts, 1, w=1 / np.sqrt(PARTS))[1]),
        fd_pixels=metrics.frechet(*map(metrics.moments, pixels)),
        fd_pixels_error=metrics.frechet_error(*pixels, *strata),
        kid=kid.value,
        kid_error=kid.error,
        manifolds=found.manifolds,
        two_sample=100 * metrics.two_sample_accuracy(x, y),
        two_sample_pixels=100 * metrics.two_sample_accuracy(*pixels),
    )
    return Row(comparison, by_parts, found)


def _row(work: Work, row: str, make: Callable[[], Row]) -> Row:
    """What `compare` returns, as a part of the work."""

    def packed() -> dict[str, np.ndarray]:
        made = make()
        fields = made.comparison._asdict() | made.overlap._asdict() | {"by_parts": made.by_parts}
        return {name: np.array(value) for name, value in fields.items()}

    values = work.part(f"row-{row}", packed)
    cover, errors = (Manifolds(*values[name].tolist()) for name in ("manifolds", "errors"))
    numbers = {name: float(values[name]) for name in Comparison._fields if name != "manifolds"}
    return Row(
        Comparison(manifolds=cover, **numbers), values["by_parts"].tolist(), Overlap(values["kids"], cover, errors)
    )


def judge(sets: dict[str, View], memorised: dict[str, float], s: Settings, work: Work | None = None) -> Findings:
    """The whole protocol.

    Args:
        sets: generated, reconstructed (of validation), validation and test images.
        memorised: percent of the generated and of the validation images that lie close to a training image.
        work: who keeps what is done, row by row, and shows progress; by default nobody.
    """
    work = work or Quiet()
    orders = order_all(sets, s)
    rows: dict[str, Row] = {}
    with work.progress(len(ROWS), "comparisons", "row") as progress:
        for row in ROWS:
            rows[row] = _row(work, row, partial(compare, sets, row, orders, s))
            progress.advance()
    return Findings(
        {name: row.comparison for name, row in rows.items()},
        {name: row.by_parts for name, row in rows.items()},
        *checks(sets, orders, memorised, rows["generated"].overlap, rows["validation"].overlap),
        100 * metrics.imbalance(sets["generated"].recognised, sets["test"].recognised),
    )


class Ruled(NamedTuple):
    """How far a set of images is from the test images in one classifier's features."""

    fd: float
    fd_error: float  # standard error
    accuracy: float  # percent recognised as what was asked for


def rule(sets: dict[str, View], s: Settings) -> dict[str, Ruled]:
    """Each set against that of the name `test`: the distance and the accuracy of the whole protocol alone, which any
    classifier's features (`look`) are enough for."""
    orders = order_all(sets, s)
    ordered = {n: images.rows(orders[n].grouped) for n, images in sets.items()}
    test, ruled = ordered.pop("test"), {}
    for name, images in ordered.items():
        fd = metrics.frechet(metrics.moments(images.features), metrics.moments(test.features))
        error = metrics.frechet_error(images.features, test.features, images.strata, test.strata)
        ruled[name] = Ruled(fd, error, images.accuracy)
    return ruled


def order_all(sets: dict[str, View], s: Settings) -> dict[str, Order]:
    return {name: order(images.labels, name, s.seed) for name, images in sets.items()}


def check_all(
    sets: dict[str, View], memorised: dict[str, float], s: Settings
) -> tuple[list[Condition], list[Condition]]:
    """The conditions and alarms of `judge` alone: generated, validation and test images are enough."""
    orders = order_all(sets, s)
    return checks(sets, orders, memorised, *(overlap(sets, row, orders, s) for row in ("generated", "validation")))


def checks(
    sets: dict[str, View], orders: dict[str, Order], memorised: dict[str, float], ours: Overlap, theirs: Overlap
) -> tuple[list[Condition], list[Condition]]:
    """The verdict's conditions and alarms: generated against validation images, and how either lie in the test images."""
    generated, real, test = sets["generated"], sets["validation"], sets["test"]
    strata = generated.strata, real.strata

    def difference(a: np.ndarray, b: np.ndarray) -> Difference:
        """In percent."""
        return metrics.difference(100.0 * a, 100.0 * b, *strata)

    covers = [
        Difference(a - b, math.hypot(*errors))
        for a, b, *errors in zip(ours.manifolds, theirs.manifolds, ours.errors, theirs.errors, strict=True)
    ]
    grouped = [orders[name].grouped for name in ("generated", "validation")]
    looks = metrics.two_sample_scores(generated.features[grouped[0]], real.features[grouped[1]])
    tried = (x[rows][1::2][: len(x) // 2] for x, rows in zip(strata, grouped, strict=True))
    told = metrics.difference(*(50 * x for x in looks), *tried)  # the mean accuracy on the two sets, above chance
    shares = [difference(generated.recognised == c, real.recognised == c) for c in range(test.logits.shape[1])]
    close = memorised["generated"], memorised["validation"]
    variance = sum(p * (100 - p) / len(x) for p, x in zip(close, strata, strict=True))
    conditions = indistinguishable(
        metrics.excess_of_frechet(generated.features, real.features, test.features, *strata),
        metrics.mean_of_blocks(ours.kids - theirs.kids),
        len(ours.kids),
        covers,
        told,
        difference(generated.recognised == generated.labels, real.recognised == real.labels),
    )
    return conditions, alarms(
        metrics.excess_of_frechet(generated.pixels, real.pixels, test.pixels, *strata),
        shares,
        Difference(close[0] - close[1], math.sqrt(variance)),
    )

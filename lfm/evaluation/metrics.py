"""How far one set of images is from another: arrays of features in, floats out. Everything in float64 on the CPU."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lfm.evaluation.neighbours import Manifolds

RANK = 1e-10  # of the largest eigenvalue: below it a direction counts as one without variance


class Comparison(NamedTuple):
    """One set of images compared with another. Distances in the classifier's features, and of pixels where it says so; each
    error is one standard error."""

    fd: float
    fd_error: float
    fd_unbiased: float  # at 1/N → 0
    fd_pixels: float
    fd_pixels_error: float
    kid: float
    kid_error: float
    manifolds: Manifolds
    two_sample: float  # percent right
    two_sample_pixels: float


class Moments(NamedTuple):
    """The Gaussian that is fitted to a set of features."""

    mean: np.ndarray  # (D,)
    cov: np.ndarray  # (D, D)


class Difference(NamedTuple):
    """A figure of one set of images minus that of another, and its standard error."""

    value: float
    error: float


def standard_error(scores: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Standard error of the mean of scores (N, ...), for sets whose counts in each of the strata (N,) are always the same."""
    _, place, counts = np.unique(strata, return_inverse=True, return_counts=True)
    member = np.eye(len(counts))[place]  # (N, strata)
    scores = scores.reshape(len(scores), -1)
    spread = np.square(scores - member @ (member.T @ scores / counts[:, None]))
    variance = (counts / np.maximum(counts - 1, 1))[place] @ spread / len(scores) ** 2
    return np.sqrt(variance)


def difference(a: np.ndarray, b: np.ndarray, strata_a: np.ndarray, strata_b: np.ndarray) -> Difference:
    """Mean of the scores a (N,) minus that of b (M,)."""
    errors = standard_error(a, strata_a), standard_error(b, strata_b)
    return Difference(float(a.mean() - b.mean()), float(np.hypot(*errors)[0]))


def moments(x: np.ndarray) -> Moments:
    """Mean and unbiased covariance of features (N, D)."""
    return Moments(x.mean(0), np.cov(x, rowvar=False))


def frechet(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance between two Gaussians (Dowson & Landau 1982; Heusel et al. 2017).

    |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), where the last trace is the sum of the roots of the eigenvalues of Σa Σb, which
    are those of the symmetric Σa^½ Σb Σa^½.
    """
    values, vectors = scipy.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(scipy.linalg.eigvalsh(root @ b.cov @ root).clip(0)).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * cross)


def potential(a: Moments, b: Moments, x: np.ndarray) -> np.ndarray:
    """What each of x (N, D) adds to the Fréchet distance of a from b if a's weight moves there, (N,), up to a constant.

    The derivative of the distance by a, Kantorovich's potential: with d = x − μa it is 2 (μa − μb)·d + d·(1 − T) d, where T =
    Σa^-½ (Σa^½ Σb Σa^½)^½ Σa^-½ carries the one Gaussian to the other (Peyré & Cuturi 2019, "Computational optimal
    transport", §2.6). Directions in which a does not vary are left out of T.
    """
    values, vectors = scipy.linalg.eigh(a.cov)
    kept = values > RANK * values[-1]
    roots = np.sqrt(values[kept])
    root, inverse = ((vectors[:, kept] * scale) @ vectors[:, kept].T for scale in (roots, 1 / roots))
    values, vectors = scipy.linalg.eigh(root @ b.cov @ root)
    carry = inverse @ ((vectors * np.sqrt(values.clip(0))) @ vectors.T) @ inverse
    d = x - a.mean
    return 2 * d @ (a.mean - b.mean) + np.einsum("nd,nd->n", d, d - d @ carry)


def frechet_error(x: np.ndarray, y: np.ndarray, strata_x: np.ndarray, strata_y: np.ndarray) -> float:
    """Standard error of the Fréchet distance of two sets of features, (N, D) and (M, D), over draws of both.

    Near the floor the distance is quadratic in the sets' deviations: q = |δ + e|² with error e of covariance S, of variance
    4 δ·Sδ + 2 tr S². The delta method, with its potential at δ + e, expects 4 δ·Sδ + 4 tr S²; the product of potentials at
    two halves of the sets, whose errors are independent, expects 4 δ·Sδ. Their mean is right for any δ. (A bootstrap expects
    4 δ·Sδ + 6 tr S².)

    Args:
        x, y: grouped by stratum, in random order within it, so that every other row is a half like the whole.
        strata_x, strata_y: (N,) and (M,); how many images each has does not vary from draw to draw.
    """
    pairs = [(moments(x[part]), moments(y[part])) for part in (slice(None), slice(0, None, 2), slice(1, None, 2))]
    variance = 0.0
    for z, strata, ordered in ((x, strata_x, pairs), (y, strata_y, [(b, a) for a, b in pairs])):
        h, h1, h2 = (potential(a, b, z) for a, b in ordered)
        # 4 Cov(h1, h2) = Var(h1 + h2) − Var(h1 − h2)
        whole, added, taken = np.square(standard_error(np.stack([h, h1 + h2, h1 - h2], 1), strata))
        variance += (whole + max(0.0, (added - taken) / 4)) / 2
    return float(np.sqrt(variance))


def excess_of_frechet(a: np.ndarray, b: np.ndarray, reference: np.ndarray, *strata: np.ndarray) -> Difference:
    """The Fréchet distance of a (N, D) from the reference minus that of b (M, D), its error over draws of a and b.

    With the potential at both sets together: what is quadratic in their deviations is then equal for both and cancels, and
    the error is that of exchanging images between them.
    """
    far = moments(reference)
    both = moments(np.concatenate([a, b]))
    scores = (potential(both, far, x) for x in (a, b))
    return Difference(frechet(moments(a), far) - frechet(moments(b), far), difference(*scores, *strata).error)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features, (N, D) and (M, D); N and M at least 2."""
    return frechet(moments(a.double().numpy()), moments(b.double().numpy()))


def frechet_of_parts(a: np.ndarray, b: np.ndarray, parts: int) -> float:
    """Mean Fréchet distance between the corresponding 1/parts of two sets of features, each in random order or grouped.

    Its bias grows as 1/N (Chong & Forsyth 2020), so distances at several N show how much of one is bias.
    """
    return float(
        np.mean([frechet(moments(x), moments(y)) for x, y in zip(_parts(a, parts), _parts(b, parts), strict=True)])
    )


def _parts(x: np.ndarray, parts: int) -> list[np.ndarray]:
    """Every parts-th row, so that rows grouped by class make parts of equal class shares."""
    return [x[i : len(x) // parts * parts : parts] for i in range(parts)]


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy under (x·y/D + 1)³, the unbiased estimate (Gretton et al. 2012; Bińkowski et al. 2018).

    Args:
        x, y: features (N, D) and (M, D). Their scale matters: bring them to one of order 1, the same for all dimensions.
    """
    n, m = len(x), len(y)
    within_x, within_y, between = (polynomial_kernel(a, b, degree=3) for a, b in ((x, x), (y, y), (x, y)))
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2 * between.mean()
    )


def kernel_distances(x: np.ndarray, y: np.ndarray, blocks: int) -> np.ndarray:
    """Kernel distances of disjoint blocks of two sets, (blocks,) (Zaremba et al. 2013).

    The blocks share no image, so their estimates are independent and the error of their mean needs no resampling. They are
    unbiased for independent draws alone: blocks of equal class shares would come out below 0.

    Args:
        x, y: features (N, D) and (M, D) in random order, not grouped by class.
    """
    return np.array([kernel_distance(a, b) for a, b in zip(_parts(x, blocks), _parts(y, blocks), strict=True)])


def mean_of_blocks(estimates: np.ndarray) -> Difference:
    """Mean and standard error of independent estimates, (blocks,)."""
    return Difference(float(estimates.mean()), float(estimates.std(ddof=1) / np.sqrt(len(estimates))))


def two_sample_scores(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of the second halves of two sets, (N // 2,) and (M // 2,), look like the first set (1) or the second (0) to a
    logistic regression that was fitted on the first halves: every other row each (Lopez-Paz & Oquab 2017).

    Args:
        x, y: features (N, D) and (M, D) in random order, or grouped; N and M about equal.
    """
    (x_fit, x_try), (y_fit, y_try) = _parts(x, 2), _parts(y, 2)
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    judge.fit(np.concatenate([x_fit, y_fit]), np.repeat([1, 0], [len(x_fit), len(y_fit)]))
    return judge.predict(x_try).astype(float), judge.predict(y_try).astype(float)


def two_sample_accuracy(x: np.ndarray, y: np.ndarray) -> float:
    """How often `two_sample_scores` are right, the same weight for either set; 0.5 is chance."""
    ours, theirs = two_sample_scores(x, y)
    return float((ours.mean() + 1 - theirs.mean()) / 2)


def imbalance(labels: np.ndarray, reference: np.ndarray) -> float:
    """Total variation between the class shares of two sets of labels: the share that would have to change class."""
    classes = max(labels.max(), reference.max()) + 1
    shares = [np.bincount(part, minlength=classes) / len(part) for part in (labels, reference)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)

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


class Comparison(NamedTuple):
    """One set of images compared with another. Distances in the classifier's features, and of pixels where it says so."""

    fd: float
    fd_sd: float  # bootstrap standard deviation
    fd_unbiased: float  # at 1/N → 0
    fd_pixels: float
    fd_pixels_sd: float
    kid: float
    kid_error: float  # standard error
    manifolds: Manifolds
    two_sample: float  # percent right
    two_sample_pixels: float


class Moments(NamedTuple):
    """The Gaussian that is fitted to a set of features."""

    mean: np.ndarray  # (D,)
    cov: np.ndarray  # (D, D)


def moments(x: np.ndarray, counts: np.ndarray | None = None) -> Moments:
    """Mean and unbiased covariance of features (N, D).

    Args:
        counts: how often each row counts, (N,), as in a bootstrap resample; once each by default.
    """
    if counts is None:
        return Moments(x.mean(0), np.cov(x, rowvar=False))
    mean = counts @ x / counts.sum()
    root = (x - mean) * np.sqrt(counts)[:, None]
    return Moments(mean, root.T @ root / (counts.sum() - 1))


def frechet(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance between two Gaussians (Dowson & Landau 1982; Heusel et al. 2017).

    |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), where the last trace is the sum of the roots of the eigenvalues of Σa Σb, which
    are those of the symmetric Σa^½ Σb Σa^½.
    """
    values, vectors = scipy.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(scipy.linalg.eigvalsh(root @ b.cov @ root).clip(0)).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * cross)


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


def kernel_distance_of_blocks(x: np.ndarray, y: np.ndarray, blocks: int) -> tuple[float, float]:
    """Mean kernel distance of disjoint blocks of two sets and its standard error (Zaremba et al. 2013).

    The blocks share no image, so their estimates are independent and the error needs no resampling. The estimate is unbiased
    for independent draws alone: blocks of equal class shares would come out below 0.

    Args:
        x, y: features (N, D) and (M, D) in random order, not grouped by class.
    """
    estimates = [kernel_distance(a, b) for a, b in zip(_parts(x, blocks), _parts(y, blocks), strict=True)]
    return float(np.mean(estimates)), float(np.std(estimates, ddof=1) / np.sqrt(blocks))


def two_sample_accuracy(x: np.ndarray, y: np.ndarray) -> float:
    """How often a logistic regression tells two sets apart, fitted on every other row and tried on the rest.

    0.5 is chance (Lopez-Paz & Oquab 2017).

    Args:
        x, y: features (N, D) and (M, D) in random order, or grouped; N and M about equal.
    """
    (x_fit, x_try), (y_fit, y_try) = _parts(x, 2), _parts(y, 2)
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    judge.fit(np.concatenate([x_fit, y_fit]), np.repeat([0, 1], [len(x_fit), len(y_fit)]))
    return float(((judge.predict(x_try) == 0).mean() + (judge.predict(y_try) == 1).mean()) / 2)


def imbalance(labels: np.ndarray, reference: np.ndarray) -> float:
    """Total variation between the class shares of two sets of labels: the share that would have to change class."""
    classes = max(labels.max(), reference.max()) + 1
    shares = [np.bincount(part, minlength=classes) / len(part) for part in (labels, reference)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)

"""What lies near what: precision, recall, density and coverage, and the nearest training image of every image."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min, pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

CHUNK_MIB = 128


class Manifolds(NamedTuple):
    """How two sets of points cover each other."""

    precision: float  # share of the generated that lie in the ball of some real point
    recall: float  # share of the real that lie in the ball of some generated point
    density: float  # in how many real balls a generated point lies, in units of k; 1 for equal distributions
    coverage: float  # share of the real balls that hold a generated point


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Distance of every point (N, D) to its k-th nearest other point, (N,)."""
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors()[0][:, -1]


def manifolds(real: np.ndarray, generated: np.ndarray, k: int) -> Manifolds:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Args:
        real, generated: features (N, D) and (M, D).
        k: the ball of a point reaches to its k-th neighbour in its own set.
    """
    return manifolds_and_scores(real, generated, k)[0]


def manifolds_and_scores(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[Manifolds, np.ndarray]:
    """`manifolds`, and what each generated point does for each of the four figures, (M, 4), with mean of squares that the
    standard error of the figure follows from.

    For precision and density it is the figure of that point. For recall and coverage it is how many real points, in units of
    N / M, it alone recalls or covers: what the figure loses without it. (By Efron & Stein's inequality, 1981, the variance
    is then at most what the scores say.)
    """
    real_radii, generated_radii = radii(real, k), radii(generated, k)
    holds = np.zeros(len(generated))  # how many real balls hold each generated point
    alone = np.zeros((2, len(generated)))  # how many real points each one alone recalls, covers
    reached = np.zeros(2)  # how many real points are recalled, covered
    start = 0
    for distances in pairwise_distances_chunked(real, generated, working_memory=CHUNK_MIB):  # rows are real points
        inside = distances <= real_radii[start : start + len(distances), None]
        start += len(distances)
        holds += inside.sum(0)
        for i, near in enumerate((distances <= generated_radii, inside)):
            counts = near.sum(1)
            reached[i] += (counts > 0).sum()
            alone[i] += near[counts == 1].sum(0)
    recall, coverage = (reached / len(real)).tolist()
    found = Manifolds(float((holds > 0).mean()), recall, float(holds.mean() / k), coverage)
    return found, np.stack(
        [holds > 0, alone[0] * len(generated) / len(real), holds / k, alone[1] * len(generated) / len(real)], 1
    )


def nearest(x: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every point of x (N, D): which of the others (M, D) is nearest, and how far it is."""
    return pairwise_distances_argmin_min(x, others)


def memorised(distances: np.ndarray, unseen: np.ndarray, quantile: float) -> float:
    """Share of images that are nearer to a training image than all but the nearest `quantile` of unseen images are.

    Equal distributions give `quantile`, copies of training images 1.

    Args:
        distances, unseen: distances to the nearest training image, of the images in question and of real unseen ones.
    """
    return float((distances < np.quantile(unseen, quantile)).mean())

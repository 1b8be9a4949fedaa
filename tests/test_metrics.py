"""The ruler, against closed forms and an independent implementation."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from lfm.evaluation.metrics import (
    frechet_distance,
    frechet_of_parts,
    imbalance,
    kernel_distance,
    kernel_distance_of_blocks,
    moments,
    two_sample_accuracy,
)  # fmt: skip
from lfm.evaluation.neighbours import manifolds, memorised, nearest
from lfm.evaluation.verdict import Condition, verdict
from lfm.psnr import psnr


def whitened(n: int, d: int) -> torch.Tensor:
    """n points with mean exactly 0 and covariance exactly the identity."""
    x = np.random.default_rng(0).standard_normal((n, d))
    x -= x.mean(0)
    return torch.from_numpy(x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T)


def test_frechet_distance_of_known_gaussians() -> None:
    x = whitened(500, 4)
    shift, scale = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    expected = (shift.square().sum() + (scale - 1).square().sum()).item()  # commuting covariances
    assert frechet_distance(x, x * scale + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_agrees_with_the_matrix_square_root() -> None:
    g = np.random.default_rng(1)
    a, b = g.standard_normal((300, 8)) @ g.standard_normal((8, 8)), g.standard_normal((200, 8)) + 0.3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-8)


def test_psnr_of_known_errors() -> None:
    a = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 255) == pytest.approx(0)
    assert psnr(a, a + 5) == pytest.approx(20 * math.log10(255 / 5))


def features(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) + 0.2 * seed


def test_counts_are_repeated_rows() -> None:
    x, counts = features(50, 4, 0), np.random.default_rng(1).multinomial(50, np.full(50, 1 / 50))
    for ours, theirs in zip(moments(x, counts.astype(float)), moments(np.repeat(x, counts, 0)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_kernel_distance_agrees_with_its_definition() -> None:
    x, y = features(30, 5, 0), features(20, 5, 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 5 + 1) ** 3

    def within(z: np.ndarray) -> float:
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    between = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    assert kernel_distance(x, y) == pytest.approx(within(x) + within(y) - 2 * between, rel=1e-6)
    assert kernel_distance_of_blocks(x, y, 1 + 1)[0] == pytest.approx(
        (kernel_distance(x[::2], y[::2]) + kernel_distance(x[1::2], y[1::2])) / 2
    )


def test_kernel_distance_is_unbiased_and_its_error_is_right() -> None:
    draws = [np.random.default_rng(i).standard_normal((200, 3)) for i in range(400)]
    found = [kernel_distance_of_blocks(x, y, 4) for x, y in zip(draws[::2], draws[1::2], strict=True)]
    estimates, errors = np.array(found).T
    assert abs(estimates.mean()) < 4 * estimates.std() / np.sqrt(len(found))
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(estimates.std(), rel=0.25)


def test_bias_of_the_frechet_distance_goes_as_1_over_n() -> None:
    x, y = (np.random.default_rng(i).standard_normal((8000, 8)) for i in (3, 4))
    by_parts = [frechet_of_parts(x, y, parts) for parts in (8, 16, 32)]
    assert by_parts[1] / by_parts[0] == pytest.approx(2, rel=0.25) and by_parts[2] / by_parts[1] == pytest.approx(
        2, rel=0.25
    )


def test_manifolds_agree_with_their_definitions() -> None:
    real, generated, k = features(60, 3, 0), features(40, 3, 1), 3

    def ball(z: np.ndarray, i: int) -> float:
        return sorted(math.dist(z[i], z[j]) for j in range(len(z)) if j != i)[k - 1]

    holds = np.array([[math.dist(r, g) <= ball(real, i) for g in generated] for i, r in enumerate(real)])
    held = np.array([[math.dist(r, g) <= ball(generated, j) for j, g in enumerate(generated)] for r in real])
    expected = (holds.any(0).mean(), held.any(1).mean(), holds.sum() / (k * len(generated)), holds.any(1).mean())
    assert manifolds(real, generated, k) == pytest.approx(expected)


def test_nearest_and_memorised() -> None:
    training, unseen = features(100, 4, 0), features(200, 4, 3)
    place, distance = nearest(training[::-1], training)
    assert np.array_equal(place, np.arange(100)[::-1]) and distance.max() < 1e-6
    assert memorised(distance, nearest(unseen, training)[1], 0.1) == 1
    assert memorised(nearest(unseen, training)[1], nearest(unseen, training)[1], 0.1) == pytest.approx(0.1)


def test_a_two_sample_test_tells_what_differs_and_nothing_else() -> None:
    x = features(2000, 4, 0)
    assert two_sample_accuracy(x, features(2000, 4, 9)) > 0.9
    same = two_sample_accuracy(x, np.random.default_rng(5).standard_normal((2000, 4)))
    assert same == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)


def test_imbalance_is_the_share_that_would_have_to_change() -> None:
    assert imbalance(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])) == pytest.approx(0.25)
    assert imbalance(np.array([0, 1]), np.array([0, 0, 1, 1])) == 0


def test_the_verdict_names_what_holds() -> None:
    conditions = [Condition("KID", "", 1, 2), Condition("accuracy", "", 3, 2)]
    assert verdict(conditions, []) == "1 of 2 conditions of indistinguishable hold (KID); not accuracy; no alarm"
    assert verdict(conditions[:1], conditions[1:]) == "1 of 1 conditions of indistinguishable hold; alarms: accuracy"
    assert not Condition("x", "", math.nan, 1).holds

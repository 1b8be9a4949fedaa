"""The ruler, against closed forms and an independent implementation."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from lfm.evaluation.metrics import (
    Difference,
    Moments,
    excess_of_frechet,
    frechet,
    frechet_distance,
    frechet_error,
    frechet_of_parts,
    imbalance,
    kernel_distance,
    kernel_distances,
    mean_of_blocks,
    moments,
    potential,
    standard_error,
    two_sample_accuracy,
)  # fmt: skip
from lfm.evaluation.neighbours import manifolds, manifolds_and_scores, memorised, nearest
from lfm.evaluation.verdict import Condition, check, verdict
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


def test_a_standard_error_is_that_of_the_mean() -> None:
    x = features(60, 2, 0)
    np.testing.assert_allclose(standard_error(x, np.zeros(60)), x.std(0, ddof=1) / np.sqrt(60))
    g, strata = np.random.default_rng(1), np.repeat([0, 1], [30, 90])
    draws = g.standard_normal((4000, 120)) + 5 * strata  # the strata's sizes stay, so their means add nothing
    errors = np.array([standard_error(draw, strata)[0] for draw in draws[:100]])
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(draws.mean(1).std(), rel=4 / np.sqrt(2 * 4000) + 0.02)


def test_the_potential_is_the_derivative_of_the_frechet_distance() -> None:
    """Weight moved from everywhere to one point changes mean and covariance, and through them the distance."""
    a, b, x, step = moments(features(50, 4, 0)), moments(features(50, 4, 1)), features(6, 4, 2), 1e-6
    slopes = []
    for point in x:
        d = point - a.mean
        moved = Moments(a.mean + step * d, (1 - step) * a.cov + step * (1 - step) * np.outer(d, d))
        slopes.append((frechet(moved, b) - frechet(a, b)) / step)
    expected = potential(a, b, x)
    np.testing.assert_allclose(np.diff(slopes), np.diff(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [0.0, 0.05, 1.0])
def test_the_error_of_a_frechet_distance_is_right_near_its_floor_and_far_from_it(shift: float) -> None:
    """Against independent sets; the strata's means differ, and their sizes are the same in each set."""
    strata, trials = np.repeat([0, 1], 250), 200
    found = []
    for i in range(trials):
        g = np.random.default_rng(i)
        x, y = (g.standard_normal((500, 12)) + 3 * strata[:, None] for _ in range(2))
        found.append((frechet(moments(x + shift), moments(y)), frechet_error(x + shift, y, strata, strata)))
    distances, errors = np.array(found).T
    assert 0.8 < np.sqrt(np.square(errors).mean()) / distances.std(ddof=1) < 1.25


def test_the_error_of_an_excess_is_right_where_there_is_none() -> None:
    strata, far = np.zeros(400), features(400, 8, 1)
    found = [excess_of_frechet(features(400, 8, 0), features(400, 8, 0), far, strata, strata)]
    assert found[0].value == 0
    for i in range(200):
        g = np.random.default_rng(i)
        found.append(excess_of_frechet(*g.standard_normal((2, 400, 8)), far, strata, strata))
    values, errors = np.array(found[1:]).T
    assert 0.85 < np.sqrt(np.square(errors).mean()) / values.std(ddof=1) < 1.15


def test_kernel_distance_agrees_with_its_definition() -> None:
    x, y = features(30, 5, 0), features(20, 5, 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 5 + 1) ** 3

    def within(z: np.ndarray) -> float:
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    between = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    assert kernel_distance(x, y) == pytest.approx(within(x) + within(y) - 2 * between, rel=1e-6)
    halves = [kernel_distance(x[::2], y[::2]), kernel_distance(x[1::2], y[1::2])]
    assert kernel_distances(x, y, 2) == pytest.approx(halves)


def test_kernel_distance_is_unbiased_and_its_error_is_right() -> None:
    draws = [np.random.default_rng(i).standard_normal((200, 3)) for i in range(400)]
    found = [mean_of_blocks(kernel_distances(x, y, 4)) for x, y in zip(draws[::2], draws[1::2], strict=True)]
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


def test_scores_of_manifolds_are_what_a_point_adds() -> None:
    """Precision and density are their means; coverage falls by its score where a point that no other's radius needs goes."""
    real, generated, k = features(60, 3, 0), features(40, 3, 1), 3
    found, scores = manifolds_and_scores(real, generated, k)
    assert scores.mean(0)[[0, 2]] == pytest.approx((found.precision, found.density))
    for i in range(0, 40, 5):
        rest = manifolds(real, np.delete(generated, i, 0), k)
        assert found.coverage - rest.coverage == pytest.approx(scores[i, 3] / 40)


def test_errors_of_manifolds_are_not_too_small() -> None:
    real = features(200, 4, 0)
    found, errors = [], []
    for i in range(100):
        values, scores = manifolds_and_scores(real, np.random.default_rng(i).standard_normal((200, 4)), 5)
        found.append(values)
        errors.append(standard_error(scores, np.zeros(200)))
    ratios = np.sqrt(np.square(errors).mean(0)) / np.std(found, axis=0, ddof=1)
    assert (ratios > 0.8).all() and (ratios < 3).all()


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


def test_the_limit_of_a_check_shares_the_false_alarms() -> None:
    """5 % shared among eight checks, and within a check among all that could exceed its limit."""
    far, near = Difference(-3.0, 1.0), Difference(2.0, 1.0)
    level = 0.05 / 8
    assert check("", "", near).limit == pytest.approx(scipy.stats.norm.isf(level))
    both = check("", "", near, far, both_ways=True)
    assert both.figure == 3 and both.limit == pytest.approx(scipy.stats.norm.isf(level / 4))
    assert check("", "", near, degrees=9).limit == pytest.approx(scipy.stats.t.isf(level, 9))
    assert check("", "", Difference(0, 0)).holds and not check("", "", Difference(1, 0), near).holds
    assert check("", "", Difference(-1, 0)).holds and not check("", "", Difference(math.nan, 1)).holds


def test_the_verdict_names_what_holds() -> None:
    conditions = [Condition("KID", "", 1, 2), Condition("accuracy", "", 3, 2)]
    assert verdict(conditions, []) == "1 of 2 conditions of indistinguishable hold (KID); not accuracy; no alarm"
    assert verdict(conditions[:1], conditions[1:]) == "1 of 1 conditions of indistinguishable hold; alarms: accuracy"
    assert not Condition("x", "", math.nan, 1).holds

"""Paths, conversions, losses, couplings and times against closed forms."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from lfm import random
from lfm.flow.coupling import independent, optimal_transport
from lfm.flow.loss import cfm_loss
from lfm.flow.path import (
    LEAST_SIGMA,
    PATHS,
    SHORT_OF_ONE,
    ProbPath,
    as_velocity,
    convert,
    interpolate,
    last_time,
    make_path,
    time_of_sigma,
)
from lfm.flow.times import sample_times, stratified
from lfm.sampling.solver import integrate, time_grid
from tests.gaussians import mixture_log_density, mixture_velocity

SIGMA_MIN = 1e-3
ALL = [make_path("cond_ot", SIGMA_MIN), *PATHS.values()]
NAMES = ["cond_ot with σ_min", *PATHS]


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_u_is_the_derivative_of_the_path(path: ProbPath) -> None:
    x0, x1 = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.01, 0.99, 5, dtype=torch.float64, requires_grad=True)
    for i in range(3):
        x_t, u_t = interpolate(path, x0, x1, t)
        (derivative,) = torch.autograd.grad(x_t[:, i].sum(), t)
        torch.testing.assert_close(derivative, u_t[:, i].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "sigma_min", "alpha_0", "sigma_1"),
    [("cond_ot", 1e-3, 0.0, 1e-3), ("cond_ot", 0.0, 0.0, 0.0), ("gvp", 0.0, 0.0, 0.0), ("vp", 0.0, 0.0066, 0.0)],
)
def test_paths_run_from_noise_to_data(name: str, sigma_min: float, alpha_0: float, sigma_1: float) -> None:
    ends = make_path(name, sigma_min)(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.alpha[0].item() == pytest.approx(alpha_0, abs=5e-5)
    assert ends.sigma[0].item() == pytest.approx(1, abs=5e-5)
    assert ends.alpha[1].item() == pytest.approx(1, abs=1e-12)
    assert ends.sigma[1].item() == pytest.approx(sigma_1, abs=1e-12)


def test_where_to_stop() -> None:
    assert last_time(make_path("cond_ot", 0.0), False) == last_time(make_path("gvp", 0.0), False) == 1
    assert last_time(make_path("cond_ot", 1e-3), True) == 1
    assert last_time(make_path("cond_ot", 0.0), True) == SHORT_OF_ONE
    assert last_time(make_path("vp", 0.0), False) == SHORT_OF_ONE


WAYS = ("velocity", "score", "noise", "data")


@pytest.mark.parametrize("path", ALL, ids=NAMES)
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(WAYS, 2)))
def test_conversions_agree_on_the_mixture(path: ProbPath, source: str, target: str) -> None:
    """Velocity and score of the mixture each have a closed form of their own; noise and data follow from the score by
    Tweedie's formula, E[x1 | x] = (x + σ² ∇ log p) / α."""
    velocity = mixture_velocity(path)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    for time in (0.1, 0.5, 0.9):
        t = torch.tensor(time, dtype=torch.float64)
        (score,) = torch.autograd.grad(mixture_log_density(path, t, x).sum(), x)
        c = path(t)
        said = {
            "velocity": velocity(t, x),
            "score": score,
            "noise": -c.sigma * score,
            "data": (x + c.sigma**2 * score) / c.alpha,
        }
        found = convert(path, source, target, said[source], x, t)
        torch.testing.assert_close(found, said[target], rtol=1e-9, atol=1e-9)


def test_a_data_prediction_becomes_a_velocity_and_its_loss_is_of_the_data() -> None:
    path, g = make_path("cond_ot", SIGMA_MIN), torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
    t, y = torch.rand(6, generator=g, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
    x_t, u_t = interpolate(path, x0, x1, t)
    oracle = as_velocity(lambda t, x, y: x1, path, "data")
    torch.testing.assert_close(oracle(t, x_t, y), u_t, rtol=1e-9, atol=1e-9)
    off = cfm_loss(lambda t, x, y: x1 + 2, path, x0, x1, t, y, "data")
    assert off.item() == pytest.approx(4)


@pytest.mark.parametrize("name", PATHS)
def test_an_error_of_predicted_data_stays_small_in_the_velocity(name: str) -> None:
    """A data prediction that is off by ε, followed to the end, ends off by about ε, there and back; without a limit to 1 / σ
    the velocity at the end is off by ε / σ."""
    path, off = make_path(name, 1e-3), 0.01
    end = last_time(path, divides_by_sigma=True)
    velocity = as_velocity(lambda t, x, y: torch.full_like(x, 0.5 + off), path, "data", LEAST_SIGMA)
    x0, y = torch.linspace(-2, 2, 5, dtype=torch.float64), torch.zeros(5)
    at_end = torch.tensor(end, dtype=torch.float64)
    perfect = as_velocity(lambda t, x, y: torch.full_like(x, 0.5), path, "data", LEAST_SIGMA)(at_end, x0, y)
    last = path(torch.tensor(time_of_sigma(path, LEAST_SIGMA), dtype=torch.float64))
    assert last.sigma == pytest.approx(LEAST_SIGMA)
    gain = last.d_alpha - last.d_sigma * last.alpha / last.sigma  # of the prediction, in the velocity
    torch.testing.assert_close(velocity(at_end, x0, y) - perfect, gain * off * torch.ones(5, dtype=torch.float64))
    for solver in ("midpoint", "heun", "rk4"):
        x1 = integrate(lambda t, x: velocity(t, x, y), x0, time_grid(50, end=end), solver).x[-1]
        assert (x1 - 0.5 - off).abs().max() < LEAST_SIGMA * 2, solver  # what noise is left
    x1 = integrate(lambda t, x: velocity(t, x, y), x0, time_grid(50, end=end), "rk4").x[-1]
    back = integrate(lambda t, x: velocity(t, x, y), x1, time_grid(50, end=end).flip(0), "rk4").x[-1]
    assert (back - x0).abs().max() < 0.1


@pytest.mark.parametrize(
    "call",
    [
        lambda x: convert(make_path("gvp", 0), "datum", "velocity", x, x, x),
        lambda x: sample_times("stratifed", x, x, x, 0, 1, 0),
        lambda x: cfm_loss(lambda t, x, y: x, make_path("gvp", 0), x, x, x, x, "noise"),
    ],
)
def test_an_unknown_name_is_not_taken_for_another(call: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises((KeyError, ValueError), match=r"datum|stratifed|noise"):
        call(torch.rand(4))


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_the_irreducible_loss_of_a_gaussian(scale: float) -> None:
    """For N(0, s²) on the straight path with σ_min = 0 the best velocity leaves π s / 2 a dimension."""
    n = 1 << 16
    g = torch.Generator().manual_seed(1)
    x0, x1 = torch.randn(2, n, generator=g, dtype=torch.float64)
    x1, t = scale * x1, stratified(torch.rand(n, generator=g, dtype=torch.float64), torch.arange(n))
    path = make_path("cond_ot", 0.0)
    variance = t**2 * scale**2 + (1 - t) ** 2

    def best(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (t * scale**2 - (1 - t)) / variance * x

    residual = scale**2 / variance  # E[(u − v)² | t], for its share in the standard error below
    loss = cfm_loss(best, path, x0, x1, t, t).item()
    # (u − v)² given t is residual · χ²: its variance is 2 residual²; times are stratified and add next to nothing.
    error = math.sqrt((2 * residual**2).mean().item() / n)
    assert loss == pytest.approx(math.pi * scale / 2, abs=4 * error)


# --- couplings -------------------------------------------------------------------------------------------------------


def test_the_independent_coupling_is_the_identity() -> None:
    x0 = torch.randn(4, 2)
    assert independent(x0, torch.randn(4, 2), None) is x0


@pytest.mark.parametrize("labelled", [False, True])
def test_optimal_transport_is_the_best_permutation(labelled: bool) -> None:
    g = torch.Generator().manual_seed(2)
    x0, x1 = torch.randn(2, 6, 2, 2, generator=g)
    y = torch.tensor([0, 1, 0, 1, 1, 0]) if labelled else None
    found = optimal_transport(x0, x1, y)

    def cost(order: tuple[int, ...]) -> float:
        return (x0[list(order)] - x1).square().sum().item()

    allowed = (o for o in itertools.permutations(range(6)) if y is None or torch.equal(y[list(o)], y))
    best = min(allowed, key=cost)
    assert torch.equal(found, x0[list(best)]), "each noise once, data and labels where they were"
    assert cost(best) < cost(tuple(range(6)))


# --- times -----------------------------------------------------------------------------------------------------------

BATCH, BATCHES = 64, 500


def times(density: str, mean: float = 0.0, std: float = 1.0, share: float = 0.2) -> Tensor:
    """(batches, batch) times, as the training draws them."""
    found = []
    for step in range(BATCHES):
        u, choice = (random.uniform(0, stream, step, (BATCH,)) for stream in ("t", "t choice"))
        order = random.permutation(0, "t order", step, BATCH)
        found.append(sample_times(density, u, order, choice, mean, std, share))
    return torch.stack(found).double()


def test_stratified_times_have_one_draw_in_each_bin() -> None:
    t = times("stratified")
    for row in t:
        assert sorted((row * BATCH).long().tolist()) == list(range(BATCH)), "one time in each bin"
    # Independent of the place in the batch: each place's mean over the batches is 1/2 within 5 standard errors.
    assert (t.mean(0) - 0.5).abs().max() < 5 * math.sqrt(1 / 12 / BATCHES)
    assert stats.kstest((t * BATCH % 1).flatten(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("density", ["uniform", "systematic"])
def test_uniform_times(density: str) -> None:
    t = times(density)
    independent_draws = t.flatten() if density == "uniform" else (t[:, 0] * BATCH % 1)
    assert stats.kstest(independent_draws, "uniform").pvalue > 1e-6
    gaps = t.sort(dim=1).values.diff(dim=1)
    assert (density == "systematic") == bool((gaps - 1 / BATCH).abs().max() < 2e-5), "systematic: one offset for all"


@pytest.mark.parametrize(("mean", "std", "share"), [(0.0, 1.0, 0.0), (-0.5, 0.7, 0.2), (0.0, 1.0, 1.0)])
def test_logit_normal_times(mean: float, std: float, share: float) -> None:
    t = times("logit_normal", mean, std, share)
    assert ((t >= 0) & (t <= 1)).all()

    def cdf(x: Tensor) -> Tensor:
        return share * x + (1 - share) * stats.norm.cdf((torch.logit(torch.as_tensor(x)) - mean) / std)

    # Stratification makes the distance smaller than independent draws would have it, never larger.
    assert stats.kstest(t.flatten(), cdf).pvalue > 1e-6
    assert (t.mean(0) - t.mean()).abs().max() < 5 * t.std() / math.sqrt(BATCHES), "independent of the place"


def test_a_time_density_off_by_a_little_is_found() -> None:
    assert stats.kstest(times("logit_normal", 0.1, 1.0, 0.0).flatten(), lambda x: stats.norm.cdf(
        torch.logit(torch.as_tensor(x)))).pvalue < 1e-6  # fmt: skip

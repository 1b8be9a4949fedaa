"""Solvers, the stochastic equation and the likelihood against closed forms."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from lfm.errors import ConfigError
from lfm.flow.path import SHORT_OF_ONE, ProbPath, make_path
from lfm.sampling import solver as solver_module
from lfm.sampling.guidance import Guidance, guided
from lfm.sampling.inversion import slerp
from lfm.sampling.likelihood import exact_divergence, hutchinson_divergence, log_likelihood
from lfm.sampling.sampler import Sampler
from lfm.sampling.solver import FIXED_STEP, euler_maruyama, integrate, time_grid
from tests.gaussians import mixture_log_density, mixture_velocity

STRAIGHT, TRIGONOMETRIC = make_path("cond_ot", 0.0), make_path("gvp", 0.0)
POINTS = torch.linspace(-2, 2, 9, dtype=torch.float64)


def test_a_gaussian_is_reached_by_its_exact_map() -> None:
    m, s, sigma_min = 0.7, 0.3, 0.01
    x0 = torch.linspace(-3, 3, 13, dtype=torch.float64)
    velocity = mixture_velocity(make_path("cond_ot", sigma_min), (m,), (s,), (1.0,))
    coarse, fine = (integrate(velocity, x0, time_grid(n), "rk4").x[-1] for n in (128, 256))
    error = (fine - (m + math.sqrt(s**2 + sigma_min**2) * x0)).abs().max()
    # Of order 4 or more, so the finer solution's error is at most 1/15 of its distance to the coarser one.
    assert error <= (coarse - fine).abs().max() / 15 * 1.1


@pytest.mark.parametrize("path", [STRAIGHT, TRIGONOMETRIC], ids=["cond_ot", "gvp"])
@pytest.mark.parametrize("solver", FIXED_STEP)
def test_each_solver_has_its_order_on_a_mixture(solver: str, path: ProbPath) -> None:
    velocity = mixture_velocity(path)
    exact = integrate(velocity, POINTS, time_grid(2048), "rk4").x[-1]
    errors = [(integrate(velocity, POINTS, time_grid(n), solver).x[-1] - exact).norm() for n in (128, 256)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(FIXED_STEP[solver].order, abs=0.1)


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_steps_mean_steps_and_evaluations_are_counted(solver: str) -> None:
    seen: list[float] = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        seen.append(float(t))
        return torch.ones_like(x)

    solution = integrate(velocity, torch.zeros(2), time_grid(7), solver)
    assert solution.nfe == len(seen) == 7 * FIXED_STEP[solver].evaluations
    torch.testing.assert_close(solution.x[-1], torch.ones(2))


def test_the_adaptive_solver_meets_its_tolerances() -> None:
    velocity = mixture_velocity(STRAIGHT)
    exact = integrate(velocity, POINTS, time_grid(2048), "rk4").x[-1]
    loose, tight = (integrate(velocity, POINTS, time_grid(10), "dopri5", rtol=r, atol=r) for r in (1e-3, 1e-8))
    # What is controlled is each step's error; over a way of length 1 the sum stays within a small multiple.
    assert (tight.x[-1] - exact).abs().max() < 10 * 1e-8 * 2
    assert (loose.x[-1] - exact).abs().max() < 10 * 1e-3 * 2
    assert loose.nfe < tight.nfe


@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_states_on_the_way_are_those_of_the_grid(solver: str) -> None:
    solution = integrate(lambda t, x: torch.ones_like(x), torch.zeros(1), time_grid(10), solver, at=[0, 3, 10])
    torch.testing.assert_close(solution.x[:, 0], torch.tensor([0.0, 0.3, 1.0]))


def test_a_shifted_grid_spends_its_steps_where_it_should() -> None:
    for shift in (0.5, 1.0, 3.0):
        grid = time_grid(8, shift)
        assert grid[0] == 0 and grid[-1] == 1 and (grid.diff() > 0).all()
        assert grid[4].item() == pytest.approx(1 / (1 + shift))
        # In the logit of t a shift is a translation by its logarithm.
        torch.testing.assert_close(
            torch.logit(grid[1:-1]), torch.logit(time_grid(8)[1:-1]) - math.log(shift), rtol=1e-12, atol=1e-12
        )
    assert time_grid(4, end=0.9)[-1] == 0.9


def test_the_error_of_an_inversion_round_trip_falls_with_order_4() -> None:
    velocity = mixture_velocity(STRAIGHT)
    errors = []
    for n in (64, 128):
        there = integrate(velocity, POINTS, time_grid(n), "rk4").x[-1]
        errors.append((integrate(velocity, there, time_grid(n).flip(0), "rk4").x[-1] - POINTS).norm())
    # The leading error terms there and back cancel in part, so the fall is at least that of order 4.
    assert math.log2(errors[0] / errors[1]) > 4 - 0.1


# --- the stochastic equation -----------------------------------------------------------------------------------------


def test_without_noise_the_stochastic_equation_is_eulers_method() -> None:
    velocity, grid = mixture_velocity(STRAIGHT), time_grid(20)

    def no_noise(step: int) -> Tensor:
        raise AssertionError("noise was drawn")

    found = euler_maruyama(velocity, STRAIGHT, POINTS, grid, no_noise, 0.0, at=[0, 7, 20])
    torch.testing.assert_close(found.x, integrate(velocity, POINTS, grid, "euler", at=[0, 7, 20]).x)
    assert found.nfe == 20


@pytest.mark.parametrize("path", [STRAIGHT, TRIGONOMETRIC], ids=["cond_ot", "gvp"])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_the_stochastic_equation_has_the_marginals_of_the_velocity(path: ProbPath, strength: float) -> None:
    """On a Gaussian each step is x ↦ slope · x + offset + spread · ε, so mean and variance follow without any sampling:
    three runs of each step measure its three numbers. What is left is the discretisation, of order 1."""
    m, s = 0.7, 0.5
    velocity = mixture_velocity(path, (m,), (s,), (1.0,))
    runs = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)  # where the three runs start,
    kicks = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)  # and what noise they get
    errors = []
    for n in (200, 400):
        grid, mean, variance = time_grid(n), 0.0, 1.0
        for i in range(n):
            step = grid[i : i + 3]  # with one more time behind, unless it is the last step, which is without noise
            end = euler_maruyama(velocity, path, runs, step, lambda i: kicks, strength, at=[1]).x[-1]
            offset, slope, spread = (end - torch.stack([end[0] * 0, end[0], end[0]])).tolist()
            mean, variance = offset + slope * mean, slope**2 * variance + spread**2
        errors.append(abs(mean - m) + abs(variance - s**2))
    assert errors[1] < 0.02
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [STRAIGHT, TRIGONOMETRIC], ids=["cond_ot", "gvp"])
def test_the_likelihood_of_a_mixture_is_its_density(path: ProbPath) -> None:
    velocity = mixture_velocity(path)
    x1 = torch.linspace(-2.5, 3, 12, dtype=torch.float64)[:, None]
    found = log_likelihood(lambda t, x: velocity(t, x[:, 0])[:, None], x1, time_grid(128), "rk4")
    one = torch.ones((), dtype=torch.float64)
    expected = mixture_log_density(path, one, x1[:, 0])
    assert (found - expected).abs().max() < 1e-4


def test_one_probe_is_exact_for_an_isotropic_gaussian() -> None:
    velocity = mixture_velocity(STRAIGHT, (0.0,), (0.6,), (1.0,))
    g = torch.Generator().manual_seed(3)
    x1, probe = (
        torch.randn(5, 2, 3, generator=g, dtype=torch.float64),
        torch.randn(5, 2, 3, generator=g).sign().double(),
    )
    exact = log_likelihood(velocity, x1, time_grid(16), "midpoint")
    estimated = log_likelihood(velocity, x1, time_grid(16), "midpoint", hutchinson_divergence(probe))
    torch.testing.assert_close(estimated, exact, rtol=1e-12, atol=1e-12)


def test_many_probes_average_to_the_exact_divergence() -> None:
    g = torch.Generator().manual_seed(4)
    matrix, n = torch.randn(6, 6, generator=g, dtype=torch.float64), 4000

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(x @ matrix.T) * t

    x, t = torch.randn(1, 6, generator=g, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    v, exact = exact_divergence(velocity, t, x)
    torch.testing.assert_close(v, velocity(t, x))
    jacobian = torch.autograd.functional.jacobian(lambda x: velocity(t, x), x)[0, :, 0]
    assert exact.item() == pytest.approx(jacobian.trace().item(), rel=1e-12)
    probes = torch.randn(n, 6, generator=g, dtype=torch.float64).sign()
    estimates = hutchinson_divergence(probes)(velocity, t, x.expand(n, -1))[1]
    assert estimates.mean().item() == pytest.approx(exact.item(), abs=4 * estimates.std().item() / math.sqrt(n))


def test_between_two_noises_lies_noise_of_the_same_length() -> None:
    a, b = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    a, b = (x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (a, b))
    torch.testing.assert_close(slerp(a, b, 0.3).flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("solver", "method"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"), ("rk4", "rk4")]
)
@pytest.mark.parametrize("backward", [False, True])
def test_a_step_is_bit_for_bit_that_of_torchdiffeq(solver: str, method: str, backward: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x, weights = torch.randn(64, 16, generator=g), torch.randn(16, 16, generator=g)
    grid = time_grid(11, 1.7).flip(0) if backward else time_grid(11, 1.7)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(x @ weights) * (1 + t) - x * t.sin()

    theirs = odeint(velocity, x, grid.float(), method=method)
    assert torch.equal(integrate(velocity, x, grid, solver, list(range(12))).x, theirs)


# --- guidance intervals ----------------------------------------------------------------------------------------------

NODES = {  # where in a step a solver evaluates the velocity
    "euler": (Fraction(0),),
    "midpoint": (Fraction(0), Fraction(1, 2)),
    "heun": (Fraction(0), Fraction(1)),
    "rk4": (Fraction(0), Fraction(1, 3), Fraction(2, 3), Fraction(1)),
    "euler_maruyama": (Fraction(0),),
}


@pytest.mark.parametrize("end", [1.0, SHORT_OF_ONE])
@pytest.mark.parametrize("solver", NODES)
def test_passes_in_a_guidance_interval_are_those_of_the_grid(solver: str, end: float) -> None:
    """In float32, whose tenths are no tenths, for intervals that begin and end on the grid: guided evaluations take both
    labels at once."""
    steps = 10
    x0, grid = torch.zeros(1, 1), time_grid(steps, end=end)
    for first, last in [(i, j) for i in range(steps + 1) for j in range(i, steps + 1)]:
        rows = 0

        def model(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
            nonlocal rows
            rows += len(x)
            return torch.zeros_like(x)

        velocity = guided(model, torch.zeros(1, dtype=torch.int64), 1, Guidance(3.0, (first / steps, last / steps)))
        Sampler(solver, steps)(velocity, make_path("cond_ot", 1e-3), x0, grid, lambda i: x0)
        times = [(i + node) / steps for i in range(steps) for node in NODES[solver]]
        assert rows == sum(1 + (Fraction(first, steps) <= t <= Fraction(last, steps)) for t in times), (first, last)


# --- the adaptive solver at its limits -------------------------------------------------------------------------------


@pytest.mark.parametrize("backward", [False, True])
def test_the_adaptive_solver_stays_within_its_times(backward: bool) -> None:
    seen: list[float] = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        seen.append(float(t))
        return -x

    grid = time_grid(4).flip(0) if backward else time_grid(4)
    solution = integrate(velocity, torch.ones(2, dtype=torch.float64), grid, "dopri5", [0, 2, 4], 1e-7, 1e-7)
    assert min(seen) >= 0 and max(seen) <= 1 and solution.nfe == len(seen)
    sign = 1 if backward else -1
    expected = torch.tensor([1.0, math.exp(sign / 2), math.exp(sign)], dtype=torch.float64)
    torch.testing.assert_close(solution.x[:, 0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("most", [10, 17])
def test_an_adaptive_solver_is_stopped_at_its_most_evaluations(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    calls = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        calls.append(float(t))
        return torch.sin(1e3 * x)

    monkeypatch.setattr(solver_module, "MOST_EVALUATIONS", most)
    with pytest.raises(
        ConfigError, match=rf"dopri5: .*can't be met with this model \({most} evaluations were not enough"
    ):
        integrate(velocity, torch.ones(64), time_grid(4), "dopri5", None, 1e-7, 1e-7)
    assert len(calls) == most


@pytest.mark.parametrize(
    "velocity",
    [
        lambda t, x: x / (1 - t).square(),  # diverges at the end
        lambda t, x: torch.sin(1e6 * x),  # rounding is larger than the tolerance
        lambda t, x: x * math.nan,
    ],
    ids=["diverging", "rough", "nan"],
)
def test_tolerances_that_cant_be_met_end_in_an_error(velocity: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ConfigError, match="dopri5: rtol 1e-07 and atol 1e-07 can't be met"):
        integrate(velocity, torch.ones(64), time_grid(4), "dopri5", None, 1e-7, 1e-7)

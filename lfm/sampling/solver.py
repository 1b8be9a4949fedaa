"""Integrating dx/dt = v(t, x), and the stochastic equation with the same marginals."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lfm.errors import ConfigError
from lfm.flow.path import ProbPath, convert

Field = Callable[[Tensor, Tensor], Tensor]


def _euler(v: Field, t: Tensor, end: Tensor, x: Tensor) -> Tensor:
    return (end - t) * v(t, x)


def _midpoint(v: Field, t: Tensor, end: Tensor, x: Tensor) -> Tensor:
    half = 0.5 * (end - t)
    return (end - t) * v(t + half, x + v(t, x) * half)


def _heun(v: Field, t: Tensor, end: Tensor, x: Tensor) -> Tensor:
    dt, k1 = end - t, v(t, x)
    k2 = v(t + dt, x + dt * k1)
    return dt * (k1 * 0.5 + k2 * 0.5)


def _rk4(v: Field, t: Tensor, end: Tensor, x: Tensor) -> Tensor:
    """Kutta's 3/8 rule."""
    dt, third, k1 = end - t, 1 / 3, v(t, x)
    k2 = v(t + dt * third, x + dt * k1 * third)
    k3 = v(t + dt * (2 / 3), x + dt * (k2 - k1 * third))
    k4 = v(end, x + dt * (k1 - k2 + k3))
    return (k1 + 3 * (k2 + k3) + k4) * dt * 0.125


class FixedStep(NamedTuple):
    """A solver whose steps are those of the grid."""

    step: Callable[[Field, Tensor, Tensor, Tensor], Tensor]  # v, t, end of the step, x ↦ change of x
    evaluations: int  # of the velocity, a step
    order: int  # the error falls as (1 / steps) to this power


FIXED_STEP = {
    "euler": FixedStep(_euler, 1, 1),
    "midpoint": FixedStep(_midpoint, 2, 2),
    "heun": FixedStep(_heun, 2, 2),
    "rk4": FixedStep(_rk4, 4, 4),
}
ADAPTIVE = {"dopri5": "dopri5"}  # torchdiffeq's name
MOST_EVALUATIONS = 10_000  # of an adaptive solver


class Solution(NamedTuple):
    x: Tensor  # (T, *x.shape), the state at each of the T times asked for
    nfe: int  # how often the velocity was evaluated


def time_grid(steps: int, shift: float = 1.0, end: float = 1.0) -> Tensor:
    """The steps + 1 times, float64, at which `steps` steps from 0 to `end` begin and end.

    t = s / (s + shift (1 − s)) with s in equal steps: a shift above 1 spends more steps near the noise, one below 1 near the
    data (Esser et al. 2024, eq. 23, which counts time from the data).
    """
    s = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return end * s / (s + shift * (1 - s))


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    grid: Tensor,
    solver: str,
    at: list[int] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> Solution:
    """Follow a velocity along a grid of times, forward or (with a falling grid) backward.

    A fixed-step solver steps exactly from one time of the grid to the next, and no result depends on another row of the
    batch. An adaptive one chooses its own steps, so that the error, taken over the whole batch, meets the tolerances. The
    velocity is never evaluated outside the grid.

    Args:
        velocity: (t, x) ↦ dx/dt, t a scalar tensor. A fixed-step solver keeps it on the CPU: the host knows every time
            without waiting for a GPU. An adaptive one has it where x is.
        x: the state at grid[0], (B, ...).
        grid: the times at which steps begin and end, n + 1 of them for n steps.
        solver: a key of `FIXED_STEP` or `ADAPTIVE`.
        at: places in the grid, rising, at which the state is wanted; by default the last one alone.
        rtol, atol: relative and absolute tolerance of an adaptive solver.

    Raises `ConfigError` where an adaptive solver can't meet its tolerances.
    """
    evaluations = 0

    def counted(t: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return velocity(t, state).to(state.dtype)

    grid = grid.to(x) if solver in ADAPTIVE else grid.to("cpu", x.dtype)
    wanted = [len(grid) - 1] if at is None else at
    stops = sorted({0, *wanted, len(grid) - 1})
    if solver in ADAPTIVE:
        from torchdiffeq import odeint  # takes scipy with it, a second of imports

        first, last = grid.min(), grid.max()

        def capped(t: Tensor, state: Tensor) -> Tensor:
            if evaluations == MOST_EVALUATIONS:
                raise AssertionError(f"{MOST_EVALUATIONS:,} evaluations were not enough")
            return counted(t.clamp(first, last), state)

        options = {"step_t": grid[stops[1:]]}  # steps end there: none reaches over the last
        try:
            states = odeint(capped, x, grid[stops], rtol=rtol, atol=atol, method=ADAPTIVE[solver], options=options)
        except AssertionError as error:  # torchdiffeq's, of a step that has become too small
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(
                f"{solver}: rtol {rtol:g} and atol {atol:g} can't be met with this model ({reason}); raise them, or choose "
                "another solver"
            ) from error
        return Solution(states[[stops.index(i) for i in wanted]], evaluations)
    passed = {0: x}
    for i, (t, end) in enumerate(pairwise(grid), 1):
        x = x + FIXED_STEP[solver].step(counted, t, end, x)
        if i in stops:
            passed[i] = x
    return Solution(torch.stack([passed[i] for i in wanted]), evaluations)


def euler_maruyama(
    velocity: Callable[[Tensor, Tensor], Tensor],
    path: ProbPath,
    x: Tensor,
    grid: Tensor,
    noise: Callable[[int], Tensor],
    strength: float,
    at: list[int] | None = None,
) -> Solution:
    """The stochastic equation whose marginals are those of the velocity: dx = (v + w s / 2) dt + √w dW, with the score s
    that follows from the velocity and w = strength · σ_t (Ma et al. 2024, "SiT", eqs. 6–9).

    The last step is without noise, which nothing after it could remove.

    Args:
        noise: step i ↦ standard normal draws of x's shape.
        strength: 0 is Euler's method for the ordinary equation.
        grid, at: as for `integrate`.
    """
    grid = grid.to("cpu", x.dtype)
    wanted = [len(grid) - 1] if at is None else at
    states = {0: x}
    for i, (t, dt) in enumerate(zip(grid[:-1], grid.diff(), strict=True)):
        v = velocity(t, x).to(x.dtype)
        last = i == len(grid) - 2
        if last or strength == 0:
            x = x + v * dt
        else:
            w = strength * path(t).sigma
            score = convert(path, "velocity", "score", v, x, t)
            x = x + (v + w * score / 2) * dt + (w * dt).sqrt() * noise(i)
        states[i + 1] = x
    return Solution(torch.stack([states[i] for i in wanted]), len(grid) - 1)

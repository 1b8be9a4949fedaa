"""Integrating dx/dt = v(t, x) with torchdiffeq, function evaluations counted."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

SOLVERS = {
    "euler": "euler",
    "midpoint": "midpoint",
    "heun": "heun2",
    "rk4": "rk4",
}  # ours → torchdiffeq's (rk4: the 3/8 rule)


class Solution(NamedTuple):
    x: Tensor  # (T, *x.shape), the state at each of the T times asked for
    nfe: int  # how often the velocity was evaluated


def uniform_grid(steps: int) -> Tensor:
    """The steps + 1 times, float64, at which `steps` equal steps from 0 to 1 begin and end."""
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    grid: Tensor,
    solver: str,
    at: list[int] | None = None,
) -> Solution:
    """Follow a velocity along a grid of times with a fixed-step solver, forward or (with a falling grid) backward.

    No step depends on another row of the batch, so neither does a result.

    Args:
        velocity: (t, x) ↦ dx/dt, t a scalar tensor.
        x: the state at grid[0], (B, ...).
        grid: the times at which steps begin and end, n + 1 of them for n steps.
        solver: a key of `SOLVERS`.
        at: places in the grid, rising, at which the state is wanted; by default the last one alone.
    """
    evaluations = 0

    def counted(t: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return velocity(t, state).to(state.dtype)

    grid = grid.to(x)
    wanted = [len(grid) - 1] if at is None else at
    stops = sorted({0, *wanted, len(grid) - 1})
    states = odeint(counted, x, grid[stops], method=SOLVERS[solver], options={"grid_constructor": lambda *_: grid})
    return Solution(states[[stops.index(i) for i in wanted]], evaluations)

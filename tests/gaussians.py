"""Data distributions whose marginal velocity and density are known in closed form, in float64.

For x1 ~ N(m, s²) the pair (x_t, u_t) is jointly Gaussian, so E[u_t | x_t = x] is linear in x; for a mixture it is the
posterior-weighted mean over the components.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lfm.flow.path import ProbPath

MEANS, STDS, WEIGHTS = (-1.0, 1.2), (0.4, 0.5), (0.4, 0.6)


def _components(path: ProbPath, mixture: tuple[tuple[float, ...], ...], t: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Of p_t at x (N,): each component's log density (N, K) with its weight, offset of x from its mean, and variance (K,)."""
    m, s, w = (torch.tensor(v, dtype=torch.float64) for v in mixture)
    c = path(t)
    variance = c.alpha**2 * s**2 + c.sigma**2
    offset = x[..., None] - c.alpha * m
    return w.log() - 0.5 * (offset**2 / variance + (2 * math.pi * variance).log()), offset, variance


def mixture_velocity(
    path: ProbPath,
    means: tuple[float, ...] = MEANS,
    stds: tuple[float, ...] = STDS,
    weights: tuple[float, ...] = WEIGHTS,
) -> Callable[[Tensor, Tensor], Tensor]:
    """(t, x) ↦ E[u_t | x_t = x] for x1 from a one-dimensional Gaussian mixture, through the path's own coefficients."""

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        log_density, offset, variance = _components(path, (means, stds, weights), t, x)
        c, m, s = path(t), torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64)
        u = c.d_alpha * m + (c.d_alpha * c.alpha * s**2 + c.d_sigma * c.sigma) / variance * offset
        return (log_density.softmax(-1) * u).sum(-1)

    return velocity


def mixture_log_density(
    path: ProbPath,
    t: Tensor,
    x: Tensor,
    means: tuple[float, ...] = MEANS,
    stds: tuple[float, ...] = STDS,
    weights: tuple[float, ...] = WEIGHTS,
) -> Tensor:
    """log p_t(x) of the same mixture on its way, (N,)."""
    return _components(path, (means, stds, weights), t, x)[0].logsumexp(-1)

"""Data distributions whose marginal velocity is known in closed form, in float64.

For x1 ~ N(m, s²) the pair (x_t, u_t) is jointly Gaussian, so E[u_t | x_t = x] is linear in x; for a mixture it is the
posterior-weighted mean over the components.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lfm.path import cond_ot

MEANS, STDS, WEIGHTS = (-1.0, 1.2), (0.4, 0.5), (0.4, 0.6)  # the mixture of closed form 2


def mixture_velocity(
    means: tuple[float, ...], stds: tuple[float, ...], weights: tuple[float, ...], sigma_min: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """(t, x) ↦ E[u_t | x_t = x] for x1 from a one-dimensional Gaussian mixture, through the path's own coefficients."""
    m, s, w = (torch.tensor(v, dtype=torch.float64) for v in (means, stds, weights))

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        path = cond_ot(t, sigma_min)
        variance = path.alpha**2 * s**2 + path.sigma**2
        offset = x[..., None] - path.alpha * m
        u = path.d_alpha * m + (path.d_alpha * path.alpha * s**2 + path.d_sigma * path.sigma) / variance * offset
        log_density = w.log() - 0.5 * offset**2 / variance - 0.5 * variance.log()
        return (log_density.softmax(-1) * u).sum(-1)

    return velocity

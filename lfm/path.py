"""The probability path from noise to data, and the loss that fits a velocity to it.

Conventions, here once for all of `lfm`: x0 is noise, x1 is data, t runs from 0 (noise) to 1 (data), and a velocity v(t, x)
points from noise to data, dx/dt = v(t, x). The path is Gaussian: x_t = α_t x1 + σ_t x0, with target velocity
u_t = α̇_t x1 + σ̇_t x0 (Lipman et al. 2023, "Flow matching for generative modeling", eqs. 10–15).
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Velocity = Callable[..., Tensor]


class Coefficients(NamedTuple):
    """α, σ and their derivatives by t, each of t's shape."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def cond_ot(t: Tensor, sigma_min: float) -> Coefficients:
    """The conditional optimal-transport path α = t, σ = 1 − (1 − σ_min) t (Lipman et al. 2023, eq. 20)."""
    one = t.new_ones(t.shape)
    return Coefficients(alpha=t, sigma=1 - (1 - sigma_min) * t, d_alpha=one, d_sigma=(sigma_min - 1) * one)


def interpolate(x0: Tensor, x1: Tensor, t: Tensor, sigma_min: float) -> tuple[Tensor, Tensor]:
    """The point x_t on the path and its velocity u_t.

    Args:
        x0, x1: noise and data, (B, ...).
        t: times in [0, 1], (B,).
        sigma_min: what noise is left at t = 1.
    """
    t = t.reshape(-1, *[1] * (x1.dim() - 1))  # (B, 1, ...)
    path = cond_ot(t, sigma_min)
    return path.alpha * x1 + path.sigma * x0, path.d_alpha * x1 + path.d_sigma * x0


def cfm_loss(model: Velocity, x0: Tensor, x1: Tensor, t: Tensor, y: Tensor | None, sigma_min: float) -> Tensor:
    """The conditional flow matching loss E |v(t, x_t, y) − u_t|², a mean over batch and dimensions (eq. 9, ibid.).

    Everything random comes in from outside, so the loss is a plain function of its arguments.
    """
    x_t, u_t = interpolate(x0, x1, t, sigma_min)
    return (model(t, x_t, y).to(u_t.dtype) - u_t).square().mean()

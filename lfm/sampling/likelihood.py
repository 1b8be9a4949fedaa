"""How likely data are under the flow: the instantaneous change of variables (Chen et al. 2018, "Neural ODEs", eq. 8)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lfm.sampling.solver import integrate

Field = Callable[[Tensor, Tensor], Tensor]


def exact_divergence(velocity: Field, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """v (B, ...) and ∇·v (B,): one derivative a dimension."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(t, x).to(x.dtype).flatten(1)  # (B, D)
        total = torch.zeros_like(v[:, 0])
        for i in range(v.shape[1]):
            (gradient,) = torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)
            total = total + gradient.flatten(1)[:, i]
    return v.detach().view_as(x), total.detach()


def hutchinson_divergence(probe: Tensor) -> Callable[[Field, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """v and the estimate eᵀ (∂v/∂x) e of ∇·v, unbiased for probes e of mean 0 and covariance I (Hutchinson 1989; Grathwohl
    et al. 2019, "FFJORD").

    Args:
        probe: e (B, ...), the same at every time of a solve: redrawn, an adaptive solver would chase noise.
    """

    def divergence(velocity: Field, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(t, x).to(x.dtype)
            (gradient,) = torch.autograd.grad((v * probe).sum(), x)
        return v.detach(), (gradient * probe).flatten(1).sum(1)

    return divergence


def log_likelihood(
    velocity: Field,
    x1: Tensor,
    grid: Tensor,
    solver: str,
    divergence: Callable[[Field, Tensor, Tensor], tuple[Tensor, Tensor]] = exact_divergence,
) -> Tensor:
    """log p(x1) in nats, (B,): log N(x0; 0, I) − ∫ ∇·v dt along the way from x1 back to its noise x0.

    Args:
        velocity: (t, x) ↦ v.
        x1: data, (B, ...).
        grid: rising times from 0 to 1, as `time_grid` makes them; followed backward here.
        divergence: `exact_divergence`, or what `hutchinson_divergence` makes.
    """

    def augmented(t: Tensor, state: Tensor) -> Tensor:
        v, rate = divergence(velocity, t, state[:, :-1].reshape(x1.shape))
        return torch.cat([v.flatten(1), rate[:, None]], dim=1)

    state = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), 1)], dim=1)  # (B, D + 1): x and ∫ ∇·v
    state = integrate(augmented, state, grid.flip(0), solver).x[-1]
    x0, integral = state[:, :-1], state[:, -1]  # the integral is that from 1 to 0
    log_normal = -0.5 * (x0.square() + math.log(2 * math.pi)).sum(1)
    return log_normal + integral

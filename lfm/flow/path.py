"""The probability path from noise to data, and what a model may predict on it.

Conventions, here once for all of `lfm`: x0 is noise, x1 is data, t runs from 0 (noise) to 1 (data), and a velocity v(t, x)
points from noise to data, dx/dt = v(t, x). Every path is Gaussian: x_t = α_t x1 + σ_t x0, with target velocity
u_t = α̇_t x1 + σ̇_t x0 (Lipman et al. 2023, "Flow matching for generative modeling", eqs. 10–15).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[..., Tensor]

SHORT_OF_ONE = 1 - 1e-5  # where to stop when something diverges at t = 1
LEAST_SIGMA = (
    0.05  # for `as_velocity`: an error of predicted data counts up to 20 times on `cond_ot` (as in "JiT", Li & He 2025)
)


class Coefficients(NamedTuple):
    """α, σ and their derivatives by t, each of t's shape."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


ProbPath = Callable[[Tensor], Coefficients]


def cond_ot(t: Tensor, sigma_min: float = 0.0) -> Coefficients:
    """The conditional optimal-transport path α = t, σ = 1 − (1 − σ_min) t (Lipman et al. 2023, eq. 20)."""
    one = t.new_ones(t.shape)
    return Coefficients(alpha=t, sigma=1 - (1 - sigma_min) * t, d_alpha=one, d_sigma=(sigma_min - 1) * one)


def gvp(t: Tensor) -> Coefficients:
    """The trigonometric path α = sin(πt/2), σ = cos(πt/2), of constant variance (Albergo & Vanden-Eijnden 2023)."""
    angle, rate = t * (math.pi / 2), math.pi / 2
    return Coefficients(angle.sin(), angle.cos(), rate * angle.cos(), -rate * angle.sin())


def vp(t: Tensor) -> Coefficients:
    """The variance-preserving diffusion with β from 0.1 to 20, its time turned round (Song et al. 2021, eq. 33).

    α = exp(−T/2) and σ = √(1 − α²) with T = (1 − t)²(β₁ − β₀)/2 + (1 − t) β₀. σ̇ → −∞ at t = 1.
    """
    low, high = 0.1, 20.0
    s = 1 - t
    integral, rate = s**2 * (high - low) / 2 + s * low, s * (high - low) + low
    alpha, sigma = torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
    return Coefficients(alpha, sigma, alpha * rate / 2, -(alpha**2) * rate / (2 * sigma))


PATHS: dict[str, ProbPath] = {"cond_ot": cond_ot, "gvp": gvp, "vp": vp}


def make_path(name: str, sigma_min: float) -> ProbPath:
    """The path of that name; σ_min, what noise is left at t = 1, belongs to `cond_ot` alone."""
    return (lambda t: cond_ot(t, sigma_min)) if name == "cond_ot" else PATHS[name]


def last_time(path: ProbPath, divides_by_sigma: bool) -> float:
    """Up to which t one may integrate and train: 1, or just short of it where the target or a division by σ diverges."""
    end = path(torch.ones((), dtype=torch.float64))
    harmless = end.d_sigma.isfinite() and (end.sigma > 1e-6 or not divides_by_sigma)
    return 1.0 if harmless else SHORT_OF_ONE


def time_of_sigma(path: ProbPath, sigma: float) -> float:
    """The t at which σ has fallen to this, by bisection; 1 where it does not fall so far."""
    low, high = 0.0, 1.0
    for _ in range(53):  # bits of a float64
        middle = (low + high) / 2
        low, high = (middle, high) if path(torch.tensor(middle, dtype=torch.float64)).sigma > sigma else (low, middle)
    return high


def _like(t: Tensor, x: Tensor) -> Tensor:
    """Times (B,) or a scalar, shaped to be multiplied with x (B, ...)."""
    return t.reshape(-1, *[1] * (x.dim() - 1)) if t.dim() else t


def interpolate(path: ProbPath, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The point x_t on the path and its velocity u_t, for noise and data (B, ...) and times (B,)."""
    c = path(_like(t, x1))
    return c.alpha * x1 + c.sigma * x0, c.d_alpha * x1 + c.d_sigma * x0


def convert(path: ProbPath, source: str, target: str, value: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """What a model says about x_t in one of four ways, said in another: `velocity`, `score`, `noise` or `data`.

    E[x1 | x_t] and E[x0 | x_t] follow from any one of them since x_t = α x1 + σ x0 and v = α̇ x1 + σ̇ x0 are linear; the score
    ∇ log p_t(x) is −E[x0 | x_t] / σ. What divides by α is undefined at t = 0 (from noise or score), what divides by σ at
    σ = 0 (from data, or to the score).
    """
    if source == target:
        return value
    c = path(_like(t, x))
    if source == "velocity":
        determinant = c.alpha * c.d_sigma - c.d_alpha * c.sigma
        data = (c.d_sigma * x - c.sigma * value) / determinant
        noise = (c.alpha * value - c.d_alpha * x) / determinant
    elif source == "data":
        data, noise = value, (x - c.alpha * value) / c.sigma
    elif source in ("noise", "score"):
        noise = value if source == "noise" else -c.sigma * value
        data = (x - c.sigma * noise) / c.alpha
    else:
        raise ValueError(f"source is {source!r}; accepted: velocity, score, noise, data")
    return {
        "velocity": c.d_alpha * data + c.d_sigma * noise,
        "score": -noise / c.sigma,
        "noise": noise,
        "data": data,
    }[target]


def as_velocity(model: Velocity, path: ProbPath, prediction: str, least_sigma: float = 0.0) -> Velocity:
    """A model that predicts `velocity` or `data`, as a velocity (t, x, y) ↦ v for solvers, guidance and validation.

    Args:
        least_sigma: where σ has fallen below it, predicted data are converted with the path's coefficients at that σ. The
            velocity still leads to them, but an error of theirs, divided by σ, no longer outweighs all else. It is one field
            there and back, so inversion and likelihood are those of what is sampled. (There the velocity of perfect
            predictions is not the path's.) 0: never.
    """
    if prediction == "velocity":
        return model
    last = time_of_sigma(path, least_sigma)
    return lambda t, x, y: convert(path, prediction, "velocity", model(t, x, y).to(x.dtype), x, t.clamp(max=last))

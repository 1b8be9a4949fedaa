"""The conditional flow matching loss, its weighting by t, and labels dropped for guidance.

Everything random comes in from outside, so a loss is a plain function of its arguments.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lfm.flow.path import ProbPath, Velocity, interpolate

Weighting = Callable[[Tensor, ProbPath], Tensor]


def squared_error(
    model: Velocity, path: ProbPath, x0: Tensor, x1: Tensor, t: Tensor, y: Tensor, prediction: str = "velocity"
) -> Tensor:
    """|v(t, x_t, y) − u_t|² of each element (B, ...), or for a model that predicts data |D(t, x_t, y) − x1|²."""
    x_t, u_t = interpolate(path, x0, x1, t)
    target = {"velocity": u_t, "data": x1}[prediction]
    return (model(t, x_t, y).to(target.dtype) - target).square()


def loss_per_sample(
    model: Velocity, path: ProbPath, x0: Tensor, x1: Tensor, t: Tensor, y: Tensor, prediction: str = "velocity"
) -> Tensor:
    """The loss of each sample, (B,): its mean over the batch is `cfm_loss`."""
    return squared_error(model, path, x0, x1, t, y, prediction).flatten(1).mean(1)


def cfm_loss(
    model: Velocity,
    path: ProbPath,
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    y: Tensor,
    prediction: str = "velocity",
    weighting: Weighting | None = None,
) -> Tensor:
    """The conditional flow matching loss E w(t) |v(t, x_t, y) − u_t|², a mean over batch and dimensions (Lipman et al. 2023,
    eq. 9). With a model that predicts data it has the same minimiser up to `lfm.flow.path.convert`.

    Args:
        x0, x1: noise and data, (B, ...).
        t, y: times and labels, (B,).
        prediction: `velocity` or `data`.
        weighting: an entry of `WEIGHTINGS`; None weighs all times alike.
    """
    if weighting is None:
        return squared_error(model, path, x0, x1, t, y, prediction).mean()
    return (weighting(t, path) * loss_per_sample(model, path, x0, x1, t, y, prediction)).mean()


def by_noise(t: Tensor, path: ProbPath) -> Tensor:
    """w = σ_t², more weight on early times: on `cond_ot`, |v − u|² σ² is the squared error of the predicted data."""
    return path(t).sigma ** 2


WEIGHTINGS: dict[str, Weighting | None] = {"uniform": None, "noise": by_noise}


def drop_labels(y: Tensor, u: Tensor, rate: float, null_label: int) -> Tensor:
    """Replace each label by the null label with probability `rate`, so that a model learns both halves of classifier-free
    guidance (Ho & Salimans 2022).

    Args:
        y: labels, (B,).
        u: uniform draws in [0, 1), (B,).
    """
    return torch.where(u < rate, null_label, y)

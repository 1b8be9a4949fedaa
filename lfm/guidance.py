"""Both halves of classifier-free guidance (Ho & Salimans 2022): labels dropped in training, velocities mixed in sampling."""

from collections.abc import Callable

import torch
from torch import Tensor

from lfm.path import Velocity


def drop_labels(y: Tensor, u: Tensor, rate: float, null_label: int) -> Tensor:
    """Replace each label by the null label with probability `rate`; u is uniform in [0, 1), (B,)."""
    return torch.where(u < rate, null_label, y)


def guided(model: Velocity, y: Tensor, scale: float, null_label: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity (t, x) ↦ v(∅) + scale · (v(y) − v(∅)), on all channels.

    Scale 1 is the conditional model and 0 the unconditional one, each at the cost of one pass; anything else takes two.

    Args:
        model: v(t, x, y).
        y: labels of the batch, (B,).
    """
    null = torch.full_like(y, null_label)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        if scale in (0, 1):
            return model(t, x, y if scale == 1 else null)
        conditional, unconditional = model(t, torch.cat([x, x]), torch.cat([y, null])).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return velocity

"""Classifier-free guidance (Ho & Salimans 2022): two velocities mixed into one."""

from collections.abc import Callable

import torch
from torch import Tensor

from lfm.flow.path import Velocity

# What a time may lie off the interval's end as it is written: it is rounded to float32 (1e-7), and a grid that ends at
# `lfm.flow.path.SHORT_OF_ONE` is shorter by 1e-5. Equal steps are 1e-4 apart or more.
ROUNDING = 2e-5


def guided(
    model: Velocity,
    y: Tensor,
    scale: float,
    null_label: int,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity (t, x) ↦ v(∅) + scale · (v(y) − v(∅)), on all channels, for t within the interval; v(y) outside it
    (Kynkäänniemi et al. 2024, "Applying guidance in a limited interval").

    Scale 1 is the conditional model and 0 the unconditional one, each at the cost of one pass, as is any t outside the
    interval; all else takes two.

    Args:
        model: v(t, x, y).
        y: labels of the batch, (B,).
        interval: first and last t at which to guide, both included. t is a scalar; whether it lies within is decided on the
            host, which must wait for the device where t is there.
    """
    null = torch.full_like(y, null_label)
    first, last = interval[0] - ROUNDING, interval[1] + ROUNDING

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        if scale == 1 or not first <= float(t) <= last:
            return model(t, x, y)
        if scale == 0:
            return model(t, x, null)
        conditional, unconditional = model(t, torch.cat([x, x]), torch.cat([y, null])).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return velocity

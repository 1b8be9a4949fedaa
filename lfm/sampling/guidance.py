"""Guidance: the velocity moved on from what knows less. From what knows no labels it is classifier-free guidance (Ho & Salimans
2022), from what was trained for less it is autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of
itself")."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lfm.flow.path import Velocity

# What a time may lie off the interval's end as it is written: it is rounded to float32 (1e-7), and a grid that ends at
# `lfm.flow.path.SHORT_OF_ONE` is shorter by 1e-5. Equal steps are 1e-4 apart or more.
ROUNDING = 2e-5


class Guidance(NamedTuple):
    """How far to move on from what knows less, and when: scale 1 is the conditional model as it is."""

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)  # first and last t at which to guide, both included

    def at(self, t: Tensor) -> float:
        """The scale at a time, a scalar: 1 outside the interval. It is decided on the host, which must wait for the device where
        t is there."""
        return self.scale if self.interval[0] - ROUNDING <= float(t) <= self.interval[1] + ROUNDING else 1.0


NONE = Guidance()


def guided(
    model: Velocity,
    y: Tensor,
    null_label: int,
    by_labels: Guidance = NONE,
    weak: Velocity | None = None,
    by_weak: Guidance = NONE,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity (t, x) ↦ v(∅) + s (v(y) − v(∅)) + (w − 1) (v(y) − v_weak(y)), on all channels, with the scales s and w of the
    time t (in intervals: Kynkäänniemi et al. 2024, "Applying guidance in a limited interval").

    Each of v(y), v(∅) and v_weak(y) costs a pass through a transformer, where it counts: s = w = 1 is the conditional model and
    s = 0, w = 1 the unconditional one, at the cost of one pass each.

    Args:
        model: v(t, x, y).
        y: labels of the batch, (B,).
        by_labels: s, of classifier-free guidance.
        weak: v_weak(t, x, y), the same model after less training; not needed where w is 1.
        by_weak: w, of autoguidance.
    """
    null = torch.full_like(y, null_label)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        s, w = by_labels.at(t), by_weak.at(t)
        if s == 0 and w == 1:
            return model(t, x, null)
        if s == 1:
            v = conditional = model(t, x, y)
        else:
            conditional, unconditional = model(t, torch.cat([x, x]), torch.cat([y, null])).chunk(2)
            v = unconditional + s * (conditional - unconditional)
        if w != 1 and weak is not None:
            v = v + (w - 1) * (conditional - weak(t, x, y))
        return v

    return velocity

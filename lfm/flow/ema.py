"""The exponential moving average of a model's weights, which is what samples are drawn with."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def decay_at(update: int, decay: float) -> float:
    """The decay of update number 0, 1, 2 …, warmed up: min(decay, (1 + n) / (10 + n)), so a short run is not ruined."""
    return min(decay, (1 + update) / (10 + update))


class EMA(Generic[M]):
    """Keeps `average`, a frozen copy of a model in evaluation mode, moving towards it.

    Args:
        model: what is averaged.
    """

    def __init__(self, model: M) -> None:
        self.average = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M, decay: float) -> None:
        """θ̄ ← decay · θ̄ + (1 − decay) · θ for the parameters; buffers are copied."""
        torch._foreach_lerp_(list(self.average.parameters()), list(model.parameters()), 1 - decay)
        if buffers := list(self.average.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))

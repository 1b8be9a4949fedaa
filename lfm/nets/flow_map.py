"""The flow map u(s, t, x, y): how a velocity transformer jumps from one time to a later one in a single evaluation."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lfm.errors import ConfigError
from lfm.nets.transformer import TIME_FREQUENCIES, Transformer, for_each, time_features

NUMBERS = (1, 2, 4, 8, 16)  # of equal steps


class FlowMap(Transformer):
    """The average velocity from time s to time t > s: x_t = x_s + (t − s) u(s, t, x_s, y) (Boffi et al. 2024, "Flow map
    matching"; Geng et al. 2025, "Mean flows").

    A velocity transformer with a second time embedding, of t − s, added to the condition. Started from a trained one it
    says the velocity at s, whatever t.

    Args:
        evaluations: the most steps it can be sampled in, a power of two: its shortest jump is 1 / evaluations.
        config: of the transformer.
    """

    def __init__(self, evaluations: int, **config: Any) -> None:
        super().__init__(**config)
        if evaluations not in NUMBERS:
            raise ConfigError(f"evaluations is {evaluations!r}; accepted: {', '.join(map(str, NUMBERS))}")
        self.config = {"evaluations": evaluations, **self.config}
        self.evaluations = evaluations
        width = self.embed.out_features
        first, last = nn.Linear(2 * TIME_FREQUENCIES, width), nn.Linear(width, width)
        nn.init.normal_(first.weight, std=0.02)
        for zero in (first.bias, last.weight, last.bias):
            nn.init.zeros_(zero)
        self.jump = nn.Sequential(first, nn.SiLU(), last)

    @classmethod
    def from_velocity(cls, model: Transformer, evaluations: int) -> "FlowMap":
        """One that begins as `model`."""
        started = cls(evaluations, **model.config)
        started.load_state_dict(model.state_dict(), strict=False)
        return started.to(next(model.parameters()).device)

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of equal steps it can be sampled in."""
        return tuple(n for n in NUMBERS if n <= self.evaluations)

    def forward(self, s: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """Average velocity (B, C, H, W) from times s to t ((B,) or scalars each, which may be on the CPU) at latents x (B, C, H, W)
        with labels y."""
        s, t = for_each(s, x), for_each(t, x)
        return self.conditioned(x, self.condition(s, y) + self.jump(time_features(t - s)))

    def follow(self, x: Tensor, y: Tensor, grid: Tensor) -> Tensor:
        """Noise x (B, C, H, W) with labels y (B,) along the n + 1 times of a grid: the states (n + 1, B, C, H, W)."""
        states = [x]
        for s, t in pairwise(grid.to("cpu", x.dtype)):
            x = x + (t - s) * self(s, t, x, y).to(x.dtype)
            states.append(x)
        return torch.stack(states)

"""Not a stage: what else a flow can do with real images, through their noise.

The equation can be followed backward, from a latent to the noise that it would have come from: inversion. Forward again
with the same label it returns to the image; with another label it becomes that digit in the same hand (class transfer);
noise between that of two images becomes an image between them (interpolation).
"""

import numpy as np
import torch
from torch import Tensor

from lfm.generator import Generator
from lfm.nets.latents import slerp
from lfm.sampling.guidance import guided
from lfm.sampling.solver import integrate, time_grid

BETWEEN = 8  # pictures from one image to the other, both included


class Uses:
    """Inverts real latents with the fourth-order fixed-step solver, without guidance, in float32."""

    def __init__(self, generator: Generator) -> None:
        self.generator, flow = generator, generator.flow
        self.velocity, self.null = flow.velocity, flow.transformer.null_label
        self.grid = time_grid(generator.p.inversion_steps, end=flow.end)

    def forward(self, x0: Tensor, labels: np.ndarray, scale: float = 1.0) -> Tensor:
        """Noise → normalised latents, (B, c, h, w)."""
        velocity = guided(self.velocity, self.generator.labels(labels), scale, self.null)
        return integrate(velocity, x0, self.grid, "rk4").x[-1]

    def invert(self, x1: Tensor, labels: np.ndarray) -> Tensor:
        """Normalised latents → their noise, (B, c, h, w)."""
        velocity = guided(self.velocity, self.generator.labels(labels), 1.0, self.null)
        return integrate(velocity, x1, self.grid.flip(0), "rk4").x[-1]

    @torch.inference_mode()
    def round_trips(self, x1: Tensor, labels: np.ndarray) -> tuple[np.ndarray, float]:
        """Images after inversion and back (B, C, H, W), and the largest difference of a latent."""
        back = self.forward(self.invert(x1, labels), labels)
        return self.generator.decode(back), float((back - x1).abs().max())

    @torch.inference_mode()
    def interpolations(self, x1: Tensor, others: Tensor) -> np.ndarray:
        """From each image to its other one through the noise between theirs, without labels: (B, 8, C, H, W)."""
        ends = torch.cat([x1, others])
        a, b = self.invert(ends, np.full(len(ends), self.null)).chunk(2)
        x0 = torch.cat([slerp(a, b, i / (BETWEEN - 1)) for i in range(BETWEEN)])
        return self.columns(self.forward(x0, np.full(len(x0), self.null)), BETWEEN)

    @torch.inference_mode()
    def transfers(self, x1: Tensor, labels: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Each image's noise, integrated with each target label under sampling's guidance: (B, targets, C, H, W)."""
        x0 = self.invert(x1, labels).repeat(len(targets), 1, 1, 1)
        x = self.forward(x0, targets.repeat(len(x1)), self.generator.p.guidance_scale)
        return self.columns(x, len(targets))

    def columns(self, x: Tensor, n: int) -> np.ndarray:
        """Latents that lie column after column, decoded: (rows, n, C, H, W)."""
        images = self.generator.decode(x)
        return images.reshape(n, -1, *images.shape[1:]).swapaxes(0, 1)

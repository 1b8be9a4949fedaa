"""What else a velocity can do with real data, through their noise.

The equation can be followed backward, from a latent to the noise that it would have come from: inversion. Forward again
with the same label it returns to the latent; with another label it becomes that digit in the same hand (class transfer);
noise between that of two latents becomes a latent between them (interpolation).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lfm.sampling.solver import integrate

Field = Callable[[Tensor, Tensor], Tensor]
SOLVER = "rk4"  # of fourth order: a way to the noise and back must end where it began


def invert(velocity: Field, x1: Tensor, grid: Tensor) -> Tensor:
    """Data x1 (B, ...) → their noise, (B, ...).

    Args:
        velocity: (t, x) ↦ dx/dt.
        grid: rising times, as `time_grid` makes them; followed backward here.
    """
    return integrate(velocity, x1, grid.flip(0), SOLVER).x[-1]


def generate(velocity: Field, x0: Tensor, grid: Tensor) -> Tensor:
    """Noise (B, ...) → data: the way back of `invert`."""
    return integrate(velocity, x0, grid, SOLVER).x[-1]


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From noise a (share 0) to noise b (share 1), each (B, ...), along the sphere that Gaussian noise lies near
    (Shoemake 1985): a straight line would pass through points far shorter than any noise."""
    u, w = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(u, w).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[:, None]
    mixed = ((1 - share) * angle).sin() / angle.sin() * u + (share * angle).sin() / angle.sin() * w
    return mixed.view_as(a)

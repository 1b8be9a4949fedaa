"""More images than there are: what a training sees instead of the very same pixels again and again."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(images: Tensor, u: Tensor, most: int) -> Tensor:
    """Images moved by whole pixels, at most so many each way, all moves equally likely; their edges are repeated.

    Args:
        images: (B, C, H, W).
        u: uniform draws in [0, 1), (B, 2): how far down, how far right.
        most: the longest move in pixels; 0 gives the images as they are.
    """
    moves = (u * (2 * most + 1)).long() - most
    rows, columns = (
        (torch.arange(n, device=images.device) - moves[:, axis, None]).clamp(0, n - 1)
        for axis, n in enumerate(images.shape[2:])
    )
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, H, W, C) → (B, C, H, W)


def distorted(pixels: Tensor, u: Tensor) -> Tensor:
    """Turn, stretch, shear and shift each image a little, as different hands would.

    Args:
        pixels: (B, C, H, W) in [−1, 1]; what comes in from outside is background, −1.
        u: uniform draws in [0, 1), (B, 5): angle (±14°), scale (±15 %), shear (±0.2), shift (±1/8 each way).
    """
    angle, scale, shear, right, down = (2 * u.to(pixels) - 1).unbind(1)
    angle, scale, shear = angle * math.pi * 14 / 180, 1 + 0.15 * scale, 0.2 * shear
    across = torch.stack([angle.cos() * scale, shear - angle.sin() * scale, right / 8], 1)  # (B, 3)
    along = torch.stack([angle.sin() * scale, angle.cos() * scale, down / 8], 1)
    grid = F.affine_grid(torch.stack([across, along], 1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels + 1, grid, align_corners=False) - 1

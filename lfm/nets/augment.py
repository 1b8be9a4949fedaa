"""More images than there are: what a training sees instead of the very same pixels again and again."""

import torch
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

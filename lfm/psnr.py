"""How close images are to their reconstructions; a module of its own, since a training depends on it."""

import math

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two sets of 8-bit images in dB: 10·log10(255² / MSE), MSE over all pixels."""
    squared = torch.mean((a.cpu().double() - b.cpu().double()).square()).item()
    return 10 * math.log10(255**2 / squared) if squared else math.inf

"""The small classifiers whose penultimate features metrics are measured in."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

FEATURES = 128
Size = Sequence[int]


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.SiLU(),
    )


def _pooled(channels: int, size: Size) -> nn.Sequential:
    return nn.Sequential(
        nn.PixelUnshuffle(2),  # 28×28 → 14×14: few channels at full size are slow on a CPU
        _convolution(4 * channels, 64),
        _convolution(64, 64),
        nn.MaxPool2d(2),
        _convolution(64, FEATURES),
        _convolution(FEATURES, FEATURES),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _strided(channels: int, size: Size) -> nn.Sequential:
    """Another kind: large strided kernels, no normalisation over the batch, features that know where things are."""
    places = math.prod(-(-pixels // 4) for pixels in size)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(32, 64, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64 * places, FEATURES),
        nn.GELU(),
    )


BODIES: dict[str, Callable[[int, Size], nn.Sequential]] = {"pooled": _pooled, "strided": _strided}


class Classifier(nn.Module):
    """A convolutional network over 8-bit images of any even size.

    Args:
        channels: 1 for grey, 3 for colour.
        classes: how many labels there are.
        body: a key of `BODIES`: what stands before the last layer.
        size: height and width of the images, for `strided`.
    """

    def __init__(self, channels: int, classes: int, body: str = "pooled", size: Size = (28, 28)) -> None:
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "body": body, "size": list(size)}
        self.body = BODIES[body](channels, size)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels in [−1, 1] (B, C, H, W) → penultimate features (B, 128)."""
        return self.body(pixels.contiguous(memory_format=torch.channels_last))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels in [−1, 1] (B, C, H, W) → logits (B, classes)."""
        return self.head(self.features(pixels))


def to_pixels(images: Tensor) -> Tensor:
    """8-bit images → float32 pixels in [−1, 1]."""
    return images.float() / 127.5 - 1

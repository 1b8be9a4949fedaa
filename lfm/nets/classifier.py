"""The small classifier whose penultimate features all metrics are measured in."""

import torch
from torch import Tensor, nn

FEATURES = 128


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.SiLU(),
    )


class Classifier(nn.Module):
    """A convolutional network over 8-bit images of any even size.

    Args:
        channels: 1 for grey, 3 for colour.
        classes: how many labels there are.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.config = {"channels": channels, "classes": classes}
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),  # 28×28 → 14×14: few channels at full size are slow on a CPU
            _convolution(4 * channels, 64),
            _convolution(64, 64),
            nn.MaxPool2d(2),
            _convolution(64, FEATURES),
            _convolution(FEATURES, FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
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

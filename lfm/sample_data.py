"""Real digits that come with the package."""

import bz2
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = Path(__file__).parent / "data/mnist_sample.npz.bz2"


class Split(NamedTuple):
    images: np.ndarray  # (N, 1, 28, 28) uint8
    labels: np.ndarray  # (N,) uint8


def mnist_sample() -> dict[str, Split]:
    """A sample of MNIST (LeCun, Cortes & Burges; CC BY-SA 3.0): 6,000 images "train", 1,000 "validation", 1,000 "test".

    Class counts are in MNIST's proportion. Each split is part of the split of that name which the bundled weights know, so
    they were fitted on none of its validation and test images.

    Example:
        >>> mnist_sample()["test"].images.shape
        (1000, 1, 28, 28)
    """
    with np.load(io.BytesIO(bz2.decompress(FILE.read_bytes()))) as arrays:
        return {s: Split(arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in ("train", "validation", "test")}

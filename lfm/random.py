"""The random-number contract: every draw is a pure function of (seed, stream, index).

The triple is hashed to a 128-bit Philox key (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so no
generator lives across steps, a stage may stop and go on anywhere, and draws for different rows can't collide as they
would with the 32 bits that torch's CPU generator takes. Draws are made on the CPU, whatever device works with them (`moved`).
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """The generator that belongs to this seed, stream name and step or row."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def normal(seed: int, stream: str, index: int, shape: Iterable[int]) -> torch.Tensor:
    """Standard normal draws, float32, of the given shape."""
    return torch.from_numpy(generator(seed, stream, index).standard_normal(tuple(shape), dtype=np.float32))


def normal_rows(seed: int, stream: str, rows: Iterable[int], shape: Iterable[int]) -> torch.Tensor:
    """One independent normal draw a row, (len(rows), *shape) float32: row i is the same whoever stands beside it."""
    return torch.stack([normal(seed, stream, row, shape) for row in rows])


def uniform(seed: int, stream: str, index: int, shape: Iterable[int]) -> torch.Tensor:
    """Uniform draws in [0, 1), float32, of the given shape."""
    return torch.from_numpy(generator(seed, stream, index).random(tuple(shape), dtype=np.float32))


def permutation(seed: int, stream: str, index: int, n: int) -> torch.Tensor:
    """A random order of 0 … n − 1, int64."""
    return torch.from_numpy(generator(seed, stream, index).permutation(n))


def moved(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Draws, or other values of the CPU, on the device that works with them. For a CUDA GPU they go through pinned memory, so that
    the host does not wait until they are there; what is pinned already is not copied again on the host."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def torch_seed(seed: int, stream: str) -> int:
    """A seed for `torch.manual_seed`, for the one draw that torch makes itself: a model's initial weights."""
    return int(generator(seed, stream).integers(2**32))

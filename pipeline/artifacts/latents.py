"""Not a stage: one split of latents.h5, normalised and on the device; held as a whole, or streamed a window at a time.

Both give the same batches, bit for bit: `pipeline.training.order` says which rows, and each row is normalised on its own.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lfm.nets.latents import LatentScale
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.training import order


@dataclass(frozen=True)
class Latents:
    """Posteriors, normalised, and labels, on the device."""

    mean: Tensor  # (N, c, h, w)
    std: Tensor  # (N, c, h, w)
    labels: Tensor  # (N,) int64

    @property
    def shape(self) -> torch.Size:
        """Of one latent: (c, h, w)."""
        return self.mean.shape[1:]

    @property
    def where(self) -> torch.device:
        return self.mean.device

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor) -> "Latents":
        """Some of them."""
        rows = rows.to(self.where)
        return Latents(self.mean[rows], self.std[rows], self.labels[rows])

    def batch(self, seed: int, step: int, size: int) -> "Latents":
        """Training batch `step`."""
        return self.rows(order.batch_rows(seed, step, size, len(self)))


class Store(Protocol):
    """What a training reads from: `Latents`, or `Streamed`."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def where(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def batch(self, seed: int, step: int, size: int) -> Latents: ...


class Streamed:
    """One split of an open latents.h5, of which one window is held at a time."""

    def __init__(self, file: ArrayFile, split: str, scale: LatentScale, where: torch.device) -> None:
        self.file, self.split, self.scale, self.where = file, split, scale, where
        rows, *shape = file.shape(f"{split}/mean")
        self.length, self.shape = rows, torch.Size(shape)
        self.window: order.Window | None = None

    def __len__(self) -> int:
        return self.length

    def batch(self, seed: int, step: int, size: int) -> Latents:
        """Training batch `step`."""
        return _joined([self._hold(w).rows(places) for w, places in order.pieces(seed, step, size, len(self))])

    def _hold(self, window: order.Window) -> Latents:
        if window is not self.window:
            self.held: Latents | None = None  # first make room
            self.held = read(self.file, self.split, self.scale, self.where, window.blocks)
            self.window = window
        assert self.held is not None
        return self.held


def read(
    file: ArrayFile, split: str, scale: LatentScale, where: torch.device, blocks: list[tuple[int, int]] | None = None
) -> Latents:
    """Rows of one split, those of some blocks side by side, or all. Beside the result, one block at a time is in memory."""
    rows, *shape = file.shape(f"{split}/mean")
    blocks = blocks or [(first, min(first + order.BLOCK, rows)) for first in range(0, rows, order.BLOCK)]
    total = sum(stop - first for first, stop in blocks)
    held = Latents(
        torch.empty(total, *shape, device=where),
        torch.empty(total, *shape, device=where),
        torch.empty(total, dtype=torch.int64, device=where),
    )
    place = 0
    for first, stop in blocks:
        here = slice(place, place + stop - first)
        mean, std, labels = (
            torch.from_numpy(file.read(f"{split}/{n}", first, stop)) for n in ("mean", "std", "labels")
        )
        held.mean[here] = scale.normalise(mean).to(where)
        held.std[here] = (std / scale.std[:, None, None]).to(where)
        held.labels[here] = labels.to(where)
        place = here.stop
    return held


def opened(file: ArrayFile, split: str, scale: LatentScale, where: torch.device, megabytes: int) -> Store:
    """One split, held where mean and standard deviation fit into so many MB, else streamed."""
    rows, *shape = file.shape(f"{split}/mean")
    if 2 * 4 * rows * torch.Size(shape).numel() <= megabytes * 1e6:
        return read(file, split, scale, where)
    return Streamed(file, split, scale, where)


def _joined(parts: list[Latents]) -> Latents:
    columns = ((part.mean, part.std, part.labels) for part in parts)
    return parts[0] if len(parts) == 1 else Latents(*(torch.cat(column) for column in zip(*columns, strict=True)))

"""latents.h5: every image's posterior. A split is read as a whole, or streamed a window at a time, normalised.

Both give the same batches, bit for bit: `pipeline.training.order` says which rows, and each row is normalised on its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lfm import random
from lfm.nets.latents import LatentScale
from pipeline.artifacts.hdf5 import ArrayFile, Format, of_splits
from pipeline.errors import UserError
from pipeline.training import order

FORMAT = Format(
    "lfm-latents/1",
    {
        **of_splits(mean="float32 rows c h w", std="float32 rows c h w", labels="uint8 rows"),
        **{f"scale/{name}": "float32 c" for name in ("mean", "std")},
    },
    {
        "dataset": str,
        "classes": int,
        **{f"image_{name}": int for name in ("channels", "height", "width")},
        **{f"{name}_sha256": str for name in ("autoencoder", "train")},
    },
)


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
    def device(self) -> torch.device:
        return self.mean.device

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor) -> "Latents":
        """Some of them."""
        rows = random.moved(rows, self.device)
        return Latents(self.mean[rows], self.std[rows], self.labels[rows])

    def batch(self, seed: int, step: int, size: int) -> "Latents":
        """Training batch `step`."""
        return self.rows(order.batch_rows(seed, step, size, len(self)))


class Store(Protocol):
    """What a training reads from: `Latents`, or `Streamed`."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def batch(self, seed: int, step: int, size: int) -> Latents: ...


class Streamed:
    """One split of an open latents.h5, of which one window is in memory at a time."""

    def __init__(self, file: ArrayFile, split: str, scale: LatentScale, device: torch.device) -> None:
        self.file, self.split, self.scale, self.device = file, split, scale, device
        rows, *shape = file.shape(f"{split}/mean")
        self.length, self.shape = rows, torch.Size(shape)
        self.window: order.Window | None = None

    def __len__(self) -> int:
        return self.length

    def batch(self, seed: int, step: int, size: int) -> Latents:
        """Training batch `step`."""
        return _joined([self._load(w).rows(places) for w, places in order.pieces(seed, step, size, len(self))])

    def _load(self, window: order.Window) -> Latents:
        if window is not self.window:
            self._latents: Latents | None = None  # first make room
            self._latents = read(self.file, self.split, self.scale, self.device, window.blocks)
            self.window = window
        assert self._latents is not None
        return self._latents


def read(
    file: ArrayFile, split: str, scale: LatentScale, device: torch.device, blocks: list[tuple[int, int]] | None = None
) -> Latents:
    """Rows of one split, those of some blocks side by side, or all. Beside the result, one block at a time is in memory."""
    rows, *shape = file.shape(f"{split}/mean")
    blocks = blocks or [(first, min(first + order.BLOCK, rows)) for first in range(0, rows, order.BLOCK)]
    total = sum(stop - first for first, stop in blocks)
    loaded = Latents(
        torch.empty(total, *shape, device=device),
        torch.empty(total, *shape, device=device),
        torch.empty(total, dtype=torch.int64, device=device),
    )
    place = 0
    for first, stop in blocks:
        here = slice(place, place + stop - first)
        mean, std, labels = (
            torch.from_numpy(file.read(f"{split}/{n}", first, stop)) for n in ("mean", "std", "labels")
        )
        loaded.mean[here] = scale.normalise(mean).to(device)
        loaded.std[here] = (std / scale.std[:, None, None]).to(device)
        loaded.labels[here] = labels.to(device)
        place = here.stop
    return loaded


def opened(file: ArrayFile, split: str, scale: LatentScale, device: torch.device, megabytes: int) -> Store:
    """One split, read as a whole where mean and standard deviation fit into so many MB, else streamed."""
    rows, *shape = file.shape(f"{split}/mean")
    if 2 * 4 * rows * torch.Size(shape).numel() <= megabytes * 1e6:
        return read(file, split, scale, device)
    return Streamed(file, split, scale, device)


def _joined(parts: list[Latents]) -> Latents:
    columns = ((part.mean, part.std, part.labels) for part in parts)
    return parts[0] if len(parts) == 1 else Latents(*(torch.cat(column) for column in zip(*columns, strict=True)))


def check_autoencoder(file: ArrayFile, path: Path, sha256: str) -> None:
    """Raises `UserError` where the latents are not of the autoencoder that a flow was trained with."""
    made_by = str(file.attribute("autoencoder_sha256"))
    if made_by != sha256:
        raise UserError(
            f"{path}: made by another autoencoder ({made_by[:12]}…) than the one that the flow was trained with "
            f"({sha256[:12]}…); run `dvc repro`"
        )

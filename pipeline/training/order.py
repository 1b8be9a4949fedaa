"""In which order a training sees its rows: shuffled so that those too many to hold can be read a window at a time.

An epoch shuffles blocks of rows that lie side by side in the file, lays so many of them into a window, and shuffles the rows
inside it. What fits into one window, as MNIST does, is shuffled as a whole. All of it follows from (seed, epoch), so a
training that holds every row and one that streams them see the same batches.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm import random

BLOCK, WINDOW = 2048, 65_536  # rows; a window is whole blocks


class Window(NamedTuple):
    """Part of an epoch: blocks, laid side by side, and the order in which their rows are seen."""

    blocks: list[tuple[int, int]]  # first row of each, and the row behind its last
    rows: Tensor  # (rows,) int64, those of the blocks, side by side
    order: Tensor  # (rows,) int64, places among `rows`


def pieces(seed: int, step: int, batch: int, n: int) -> Iterator[tuple[Window, Tensor]]:
    """Training batch `step` of epochs of n rows laid end to end: windows in turn, each with places among its rows.

    A batch may span windows and epochs, so every row is seen equally often whatever n and the batch size are.
    """
    place, end = step * batch, (step + 1) * batch
    while place < end:
        epoch, inside = divmod(place, n)
        starts = _layout(seed, epoch, n)[1]
        number = int(np.searchsorted(starts, inside, side="right")) - 1
        window = _window(seed, epoch, number, n)
        inside -= int(starts[number])
        places = window.order[inside : inside + end - place]
        yield window, places
        place += len(places)


def batch_rows(seed: int, step: int, batch: int, n: int) -> Tensor:
    """The rows of training batch `step`, (batch,) int64."""
    return torch.cat([window.rows[places] for window, places in pieces(seed, step, batch, n)])


@lru_cache(maxsize=2)  # most steps stay in the epoch of the step before
def _layout(seed: int, epoch: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """First rows of the blocks in the order in which they are seen, and each window's first place in the epoch."""
    firsts = np.arange(0, n, BLOCK)
    if n > WINDOW:
        firsts = firsts[random.permutation(seed, "blocks", epoch, len(firsts)).numpy()]
    ends = np.cumsum(np.minimum(firsts + BLOCK, n) - firsts)
    together = WINDOW // BLOCK
    return firsts, np.concatenate([[0], ends[together - 1 : -1 : together]])


@lru_cache(maxsize=2)
def _window(seed: int, epoch: int, number: int, n: int) -> Window:
    firsts, starts = _layout(seed, epoch, n)
    together = WINDOW // BLOCK
    blocks = [(int(f), int(min(f + BLOCK, n))) for f in firsts[number * together : (number + 1) * together]]
    rows = torch.cat([torch.arange(first, end) for first, end in blocks])
    return Window(blocks, rows, random.permutation(seed, "epoch", epoch * len(starts) + number, len(rows)))

"""What a step draws on the host, made while the device works on the step before."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lfm import random

Draws = tuple[Tensor, ...]


def ahead(make: Callable[[int], Draws], device: torch.device) -> Callable[[int], Draws]:
    """step ↦ what `make` draws for it on the CPU, moved to the device.

    For a CUDA GPU a thread makes the draws of step n + 1, in pinned memory, once those of step n are asked for. They are a
    function of the step alone, so they have the same bits as without it. On a CPU, whose cores compute the step, nothing is made
    ahead.
    """
    if device.type != "cuda":
        return lambda step: tuple(draws.to(device) for draws in make(step))
    thread, waiting = ThreadPoolExecutor(1, "ahead"), dict[int, Future[Draws]]()

    def pinned(step: int) -> Draws:
        return tuple(draws.pin_memory() for draws in make(step))

    def drawn(step: int) -> Draws:
        this = waiting.pop(step, None) or thread.submit(pinned, step)
        waiting.clear()
        waiting[step + 1] = thread.submit(pinned, step + 1)
        return tuple(random.moved(draws, device) for draws in this.result())

    return drawn

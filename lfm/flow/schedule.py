"""How the learning rate moves through a training."""

import math


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: linear from 1/warmup to 1, then half a cosine down to 0 (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def warmup_constant(step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate: linear from 1/warmup to 1, and 1 from there on."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


SCHEDULES = {"cosine": warmup_cosine, "constant": warmup_constant}

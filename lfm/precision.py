"""How precise and how repeatable the arithmetic is."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch


def precision(name: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a model runs: `bf16` is autocast (weights stay float32), `float32` changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()


def make_deterministic() -> None:
    """Make the same inputs give the same bytes on the same kind of device and number of threads."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, slow
    torch.backends.cudnn.benchmark = False

"""The machine: which device, how precise, how repeatable."""

import os
import platform
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import torch

from pipeline.errors import UserError

F = TypeVar("F", bound=Callable[..., object])


def device(rank: int = 0) -> torch.device:
    """`LFM_DEVICE` if it is set (cpu, cuda, cuda:1), else a CUDA GPU, the next for each rank, else the CPU; made repeatable.

    The environment decides, not a parameter: moving between machines reruns nothing.
    """
    _deterministic()
    wanted = os.environ.get("LFM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = f"cuda:{rank % torch.cuda.device_count()}" if wanted == "cuda" and torch.cuda.is_available() else wanted
    try:
        found = torch.device(wanted)
        if found.type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor a CUDA GPU")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"LFM_DEVICE: '{wanted}' can't be used here ({reason}); unset it or choose cpu or cuda"
        ) from error
    return found


def _deterministic() -> None:
    """Make the same inputs give the same bytes on the same kind of device (and number of threads)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, slow
    torch.backends.cudnn.benchmark = False


def machine() -> dict[str, str | int]:
    """What the bits of a result follow from besides its inputs: kind of device, its instructions, number of threads."""
    wanted = os.environ.get("LFM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "device": torch.cuda.get_device_name() if wanted.startswith("cuda") and torch.cuda.is_available() else wanted,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def precision(name: str, where: torch.device) -> AbstractContextManager[object]:
    """The context in which a model runs: `bf16` is autocast (weights stay float32), `float32` is nothing at all."""
    return torch.autocast(where.type, torch.bfloat16) if name == "bf16" else nullcontext()


def compiled(function: F, where: torch.device, section: str) -> F:
    """The function through `torch.compile`, which on a CPU needs a C++ compiler; `section` of params.yaml asked for it."""
    if where.type == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise UserError(
            f"{section}.compile is true, but no C++ compiler (g++, clang++ or $CXX) was found; install one or set "
            f"{section}.compile: false"
        )
    warnings.filterwarnings("ignore", module=r"torch\._dynamo")  # what it thinks of libraries that we call
    return cast(F, torch.compile(function, dynamic=False))

"""Which device works, and what kind of machine this is."""

import os
import platform

import torch

from lfm.precision import make_deterministic, resolve
from pipeline.errors import UserError


def device(rank: int = 0) -> torch.device:
    """`LFM_DEVICE` if it is set (cpu, cuda, cuda:1, mps), else a CUDA GPU, the next for each rank, else the CPU; made repeatable.

    The environment decides, not a parameter: moving between machines reruns nothing. Apple's GPU (mps) works where it is asked
    for; no figure was made or measured there.
    """
    wanted = _wanted()
    wanted = f"cuda:{rank % torch.cuda.device_count()}" if wanted == "cuda" and torch.cuda.is_available() else wanted
    try:
        chosen = torch.device(wanted)
        if chosen.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("neither a CPU nor a GPU that is known")
        make_deterministic(chosen)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"LFM_DEVICE: '{wanted}' can't be used here ({reason}); unset it or choose cpu, cuda or mps"
        ) from error
    return chosen


def machine() -> dict[str, str | int]:
    """What the bits of a result follow from besides its inputs: kind of device, its instructions, what
    `precision: auto` means there, number of threads."""
    wanted = _wanted()
    gpu = wanted.startswith("cuda") and torch.cuda.is_available()
    kind = "cuda" if gpu else "mps" if wanted.startswith("mps") else "cpu"
    return {
        "device": torch.cuda.get_device_name() if gpu else wanted,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "auto precision": resolve("auto", torch.device(kind)),
        "threads": torch.get_num_threads(),
    }


def _wanted() -> str:
    return os.environ.get("LFM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")

"""How precise and how repeatable the arithmetic is."""

import functools
import os
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("auto", "bf16", "float32")


def resolve(name: str, device: torch.device) -> str:
    """What `auto` means on a device, `bf16` or `float32`; another name as it is.

    bf16 where it is the faster one: on GPUs that have it, on CPUs with AMX, and on AMD from Zen 4 on. Intel's avx512_bf16
    without AMX multiplies matrices at half the speed of float32, and a CPU without either at a hundredth. On Apple's GPU float32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    features = _cpu_features() if device.type == "cpu" else {}
    fast = features.get("amx_bf16") or ("AMD" in str(features.get("cpu_name")) and features.get("avx512_bf16"))
    return "bf16" if fast else "float32"


@functools.cache
def _cpu_features() -> dict[str, object]:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # torch before 2.10 has none: float32 then
    return dict(capabilities())


def precision(name: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a model runs: `bf16` is autocast (weights stay float32), `float32` changes nothing, and `auto` is
    the faster one (`resolve`)."""
    return torch.autocast(device.type, torch.bfloat16) if resolve(name, device) == "bf16" else nullcontext()


def make_deterministic(device: torch.device) -> None:
    """Make the same inputs give the same bytes on the same kind of device and number of threads.

    Apple's GPU (mps) has no deterministic version of some operations. They run all the same, each named once in a warning.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # As torch.use_deterministic_algorithms, which takes seconds to import the compiler first.
    torch.set_deterministic_debug_mode("warn" if device.type == "mps" else "error")
    warnings.filterwarnings("once", ".*does not have a deterministic implementation")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, slow
    torch.backends.cudnn.benchmark = False

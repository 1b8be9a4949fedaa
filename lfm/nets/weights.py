"""Models as folders: `config.json` (the constructor's arguments) beside `model.safetensors`. No pickle anywhere."""

import errno
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import nn

from lfm.errors import ConfigError

M = TypeVar("M", bound=nn.Module)
MODEL_FILES = ("config.json", "model.safetensors")
LAYERS = {"depth", "layers_per_block", "num_encoder_blocks", "num_decoder_blocks"}  # ours, and diffusers' names


def save_model(folder: Path, model: nn.Module, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write a model's configuration and weights; `dtype` is what floating-point weights are stored as."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype) for k, v in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save({k: v.contiguous() for k, v in state.items()}))


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `ConfigError` where it is missing or none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; fetch or make the model again") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error}); fetch or make the model again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object; fetch or make the model again")
    return value


def digest(folder: Path, names: Iterable[str]) -> str:
    """sha256 of some files of a folder, their names included. Raises `ConfigError` where one is missing."""
    total = hashlib.sha256()
    for name in names:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: no {name}; it must hold {' and '.join(names)}")
        total.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()


def refused(error: Exception) -> bool:
    """Whether it is the machine that can't read a file now, which says nothing of its content."""
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)


def check_counts(config: dict[str, Any], weights: Path) -> None:
    """Raises `ValueError` where a configuration asks for more layers than there are tensors: building them would not end."""
    with safe_open(weights, "pt") as file:
        tensors = len(file.keys())
    for name in LAYERS & config.keys():
        counts = config[name] if isinstance(config[name], list) else [config[name]]
        if any(isinstance(count, int) and count > tensors for count in counts):
            raise ValueError(f"{name} is {config[name]}, and {weights.name} holds {tensors} tensors")


def check_finite(model: nn.Module) -> None:
    """Raises `ValueError` that names a weight which is NaN or infinite."""
    for name, value in model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} is not finite")


def load_model(folder: Path, build: type[M]) -> M:
    """Read what `save_model` wrote, as float32, in evaluation mode.

    Raises `ConfigError` where a file is missing, damaged or of another architecture, `OSError` where it can't be read now.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        check_counts(config, folder / "model.safetensors")
        model = build(**config)
        model.load_state_dict(load((folder / "model.safetensors").read_bytes()))
        check_finite(model)
    except Exception as error:  # a damaged configuration makes constructors raise anything
        if refused(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise ConfigError(
            f"{folder}: can't be read as {build.__name__} ({reason}); fetch or make the model again"
        ) from error
    return model.eval()

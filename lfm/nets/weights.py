"""Models as folders: `config.json` (the constructor's arguments) beside `model.safetensors`. No pickle anywhere."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lfm.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


def save_model(folder: Path, model: nn.Module, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write a model's configuration and weights; `dtype` is what floating-point weights are stored as."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype) for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")


def check_finite(model: nn.Module) -> None:
    """Raises `ValueError` that names a weight which is NaN or infinite."""
    for name, value in model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} is not finite")


def load_model(folder: Path, build: type[M]) -> M:
    """Read what `save_model` wrote, as float32, in evaluation mode.

    Raises `ConfigError` where a file is missing, damaged or of another architecture.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        model = build(**config)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        check_finite(model)
    except Exception as error:  # a damaged configuration makes constructors raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise ConfigError(
            f"{folder}: can't be read as {build.__name__} ({reason}); delete the folder and run `dvc repro`"
        ) from error
    return model.eval()

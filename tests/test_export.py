"""The exported graphs compute what torch does, for every batch size, and their bytes follow from the model alone."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfm.errors import ConfigError
from lfm.export import export_onnx
from lfm.model import LatentFlow
from lfm.nets.autoencoder import ImageAutoencoder, build
from lfm.nets.transformer import Transformer

ROOT = Path(__file__).parent.parent
BATCHES = [1, 3, 16, 70]
LATENTS, GREY_LEVELS = 1e-3, 1  # largest differences that count as equal
Run = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def model() -> LatentFlow:
    return LatentFlow.from_pretrained()


@pytest.fixture(scope="module")
def folder(model: LatentFlow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(model, folder)
    return folder


def opened(folder: Path, name: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    return lambda **inputs: session.run(None, {k: np.asarray(v) for k, v in inputs.items()})[0]


def difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


@pytest.mark.parametrize("n", BATCHES)
def test_graphs_compute_what_torch_does(model: LatentFlow, folder: Path, n: int) -> None:
    draws = torch.Generator().manual_seed(n)
    x, t = torch.randn(n, *model.latent_shape, generator=draws), torch.rand(n, generator=draws)
    y = torch.arange(n) % (model.classes + 1)  # the null label too
    with torch.inference_mode():
        expected = model.transformer(t, x, y)
    assert difference(opened(folder, "velocity")(t=t, x=x, y=y), expected) <= LATENTS
    images = model.decode(x, "pt")
    assert difference(opened(folder, "decoder")(latents=x), images) <= GREY_LEVELS
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=draws)  # any order of channels would show
    for pixels in (images, noise):
        assert difference(opened(folder, "encoder")(images=pixels), model.encode(pixels)) <= LATENTS


@pytest.mark.parametrize("n", BATCHES)
def test_the_flow_map_jumps_as_in_torch(model: LatentFlow, folder: Path, n: int) -> None:
    draws = torch.Generator().manual_seed(n)
    x, s = torch.randn(n, *model.latent_shape, generator=draws), torch.rand(n, generator=draws) / 2
    y = torch.arange(n) % model.classes
    assert model.flow_map is not None
    with torch.inference_mode():
        expected = model.flow_map(s, s + 0.5, x, y)
    assert difference(opened(folder, "flow_map")(s=s, t=s + 0.5, x=x, y=y), expected) <= LATENTS


def small(block: str = "dit", prediction: str = "velocity") -> LatentFlow:
    """A model of random weights for colour images of odd sizes."""
    torch.manual_seed(0)
    transformer = Transformer(4, 4, 2, block, 16, 1, 2, 2.0, 3)
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    flow = {"path": "gvp", "sigma_min": 0.0, "prediction": prediction, "scale_mean": [0.1, 0.2, 0.3, 0.4],
            "scale_std": [1.0, 2.0, 3.0, 4.0], "image_channels": 3, "image_height": 13, "image_width": 14}  # fmt: skip
    coder = ImageAutoencoder(build(2, 3, 4, [8, 8], 1).eval().requires_grad_(False), 3, (13, 14))
    return LatentFlow(transformer, flow, autoencoder=coder.to(torch.device("cpu")))


@pytest.mark.parametrize(("block", "prediction"), [("dit", "data"), ("modern", "velocity")])
def test_any_architecture(block: str, prediction: str, tmp_path: Path) -> None:
    model = small(block, prediction)
    export_onnx(model, tmp_path, "float32")
    x, t, y = torch.randn(5, 4, 4, 4), torch.linspace(0.1, 0.8, 5), torch.tensor([0, 1, 2, 3, 0])
    with torch.inference_mode():
        assert difference(opened(tmp_path, "velocity")(t=t, x=x, y=y), model._velocity(t, x, y)) <= LATENTS
    images = torch.randint(0, 256, (5, 3, 13, 14), dtype=torch.uint8)
    assert difference(opened(tmp_path, "encoder")(images=images), model.encode(images)) <= LATENTS
    assert difference(opened(tmp_path, "decoder")(latents=x), model.decode(x, "pt")) <= GREY_LEVELS


def test_description_and_sizes(model: LatentFlow, folder: Path) -> None:
    described = json.loads((folder / "model.json").read_text())
    for name, file in described["files"].items():
        content = (folder / name).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert str(ROOT).encode() not in content
    assert sorted(described["files"]) == ["decoder.onnx", "encoder.onnx", "flow_map.onnx", "velocity.onnx"]
    assert described["flow_map_steps"] == [1, 2, 4]
    assert described["sampler"]["solver"] == model.sampler.solver
    modules = model.transformer, model.flow_map, model.autoencoder.model
    weights = sum(p.numel() for module in modules if module is not None for p in module.parameters())
    assert sum(file["bytes"] for file in described["files"].values()) < 2.2 * weights


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    here, there, saved = tmp_path / "here", tmp_path / "there", tmp_path / "model"
    small().save_pretrained(saved)
    export_onnx(LatentFlow.from_pretrained(saved), here)
    code = f"from lfm.export import *; export_onnx(LatentFlow.from_pretrained({str(saved)!r}), {str(there)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "1"})
    for file in here.iterdir():
        assert (there / file.name).read_bytes() == file.read_bytes(), file.name


def test_what_cannot_be_exported_says_so(model: LatentFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^dtype"):
        export_onnx(model, tmp_path, "int8")
    with pytest.raises(ConfigError, match="autoencoder"):
        export_onnx(LatentFlow(model.transformer, model.config), tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="onnxscript"):
        export_onnx(model, tmp_path)

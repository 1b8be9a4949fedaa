"""A model as ONNX, for runtimes without torch: its graphs and a description.

    velocity.onnx   t (B,), x (B, c, h, w), y (B,) int64 → v (B, c, h, w); y = `null_label` of model.json is "no label"
    flow_map.onnx   s, t (B,), x (B, c, h, w), y (B,) → u (B, c, h, w), where the model has one: x + (t − s) u is at t
    encoder.onnx    images (B, C, H, W) uint8 → latents (B, c, h, w), the normalised mean of the posterior
    decoder.onnx    latents (B, c, h, w), normalised → images (B, C, H, W) uint8
    model.json      shapes, path, sampling defaults, and size and sha256 of each file

Solver, guidance and time grid are the caller's, as in `lfm.sampling`. The same model gives the same bytes.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lfm.errors import ConfigError
from lfm.model import LatentFlow
from lfm.nets.flow_map import FlowMap

if TYPE_CHECKING:
    from onnx import ModelProto

FORMAT = "lfm-onnx/1"
OPSET = 20  # of ONNX; 23 has RMSNorm as one operator, which few runtimes have
DTYPES = {"float16": torch.float16, "float32": torch.float32}
LARGE = 1024  # elements from which an unnamed constant of a graph counts as a weight
TRACED_BATCH = 2  # 0 and 1 would be taken for constants


class Velocity(nn.Module):
    """The model's velocity, whatever it was trained to predict."""

    def __init__(self, model: LatentFlow) -> None:
        super().__init__()
        self.transformer, self.velocity = model.transformer, model._velocity

    def forward(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.velocity(t, x, y)


class Jump(nn.Module):
    """The average velocity of the model's flow map."""

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map = flow_map

    def forward(self, s: Tensor, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.flow_map(s, t, x, y)


class Encoder(nn.Module):
    """8-bit images → normalised latents."""

    def __init__(self, model: LatentFlow) -> None:
        super().__init__()
        self.coder, self.scale, self.model = model.autoencoder, model.scale, model.autoencoder.model

    def forward(self, images: Tensor) -> Tensor:
        return self.scale.normalise(self.coder.moments(images)[0])


class Decoder(Encoder):
    """Normalised latents → 8-bit images."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.coder.decode(self.scale.restore(latents))


def export_onnx(
    model: LatentFlow, folder: str | os.PathLike[str], dtype: str = "float16", flow_map: bool = True
) -> dict[str, Any]:
    """Write the model as ONNX and return the content of model.json. Existing files are replaced.

    Args:
        folder: made where it is missing.
        dtype: `float16` or `float32`, what weights are stored as. Graphs compute in float32 either way.
        flow_map: with the model's flow map, where it has one.

    Raises `ConfigError` where onnx and onnxscript are not installed, or the model has no autoencoder.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; accepted: {', '.join(DTYPES)}")
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"export needs {error.name}; install it: pip install 'lfm[export]'") from error
    folder, device = Path(folder), model.device
    model.to("cpu")
    x = torch.zeros(TRACED_BATCH, *model.latent_shape)
    times, labels = torch.full((TRACED_BATCH,), 0.5), torch.zeros(TRACED_BATCH, dtype=torch.int64)
    images = torch.zeros(TRACED_BATCH, *model.image_shape, dtype=torch.uint8)
    graphs: dict[str, tuple[nn.Module, dict[str, Tensor], str]] = {
        "velocity.onnx": (Velocity(model), {"t": times, "x": x, "y": labels}, "v"),
        "encoder.onnx": (Encoder(model), {"images": images}, "latents"),
        "decoder.onnx": (Decoder(model), {"latents": x}, "images"),
    }
    if flow_map and model.flow_map is not None:
        graphs["flow_map.onnx"] = Jump(model.flow_map), {"s": 0 * times, "t": times, "x": x, "y": labels}, "u"
    files = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (module, inputs, output) in graphs.items():
        graph = _traced(module, inputs, output)
        if dtype == "float16":
            _store_half(graph, module)
        _strip(graph)
        onnx.checker.check_model(graph)
        content = graph.SerializeToString(deterministic=True)
        (folder / name).write_bytes(content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    model.to(device)
    description = describe(model) | {"dtype": dtype, "opset": OPSET, "files": files}
    if "flow_map.onnx" in files:
        assert model.flow_map is not None
        description["flow_map_steps"] = list(model.flow_map.steps)
    (folder / "model.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description


def describe(model: LatentFlow) -> dict[str, Any]:
    """What a caller of the graphs must know."""
    return {
        "format": FORMAT,
        "dataset": model.config.get("dataset"),
        "classes": model.classes,
        "null_label": model.transformer.null_label,
        "image_shape": list(model.image_shape),
        "latent_shape": list(model.latent_shape),
        "scale_mean": model.config["scale_mean"],
        "scale_std": model.config["scale_std"],
        "path": model.config["path"],
        "sigma_min": model.config["sigma_min"],
        "end": model.end,
        "sampler": model.sampler._replace(autoguidance_scale=1.0).as_json(),  # the weak model stays behind
        "parameters": sum(weight.numel() for weight in model.transformer.parameters()),
    }


def _traced(module: nn.Module, inputs: dict[str, Tensor], output: str) -> "ModelProto":
    """The graph of a module, for any batch size."""
    # Upper bound: above 63, diffusers' upsampling adds a copy, which no graph needs.
    batch = torch.export.Dim("batch", min=1, max=63)
    dynamic = tuple({0: batch} for _ in inputs)
    with _quiet(), torch.no_grad():
        # strict: only there does len(x), which the transformer expands times to, stay the batch size and no constant.
        program = torch.export.export(module.eval(), tuple(inputs.values()), dynamic_shapes=dynamic, strict=True)
        traced = torch.onnx.export(
            program, input_names=list(inputs), output_names=[output], opset_version=OPSET, dynamo=True,
            external_data=False, verbose=False,
        )  # fmt: skip
    assert traced is not None
    return traced.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _store_half(graph: "ModelProto", module: nn.Module) -> None:
    """Store weights as float16, each with a cast to float32 behind it. Tables of sines and cosines stay as they are."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {name for name, _ in module.named_parameters()}
    tables = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    casts = []
    for i, tensor in enumerate(graph.graph.initializer):
        name, size = tensor.name, int(np.prod(tensor.dims))
        folded = name not in tables and size >= LARGE  # transposed by the exporter, which renames them
        if tensor.data_type != TensorProto.FLOAT or not (name in weights or folded):
            continue
        half = numpy_helper.to_array(tensor).astype(np.float16)
        graph.graph.initializer[i].CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _strip(graph: "ModelProto") -> None:
    """Remove what differs between machines: stack traces, paths, versions; and the bound that tracing needed."""
    graph.producer_name, graph.producer_version, graph.doc_string = "lfm", "", ""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:], graph.graph.value_info[:]
    for item in (*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"

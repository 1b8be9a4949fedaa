"""A model → what the page loads: graphs, their description, and a cloud of latents to draw paths over.

`python -m web.export run` exports the last run and `python -m web.export bundled` the bundled model: two stages of web/dvc.yaml.
"""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from lfm.export import export_onnx
from lfm.model import LatentFlow
from pipeline.artifacts import hdf5, latents
from pipeline.run import Context, run

WEB = Path("web")
LATENTS, SEED = 2_000, 0
FILES = ("velocity", "encoder", "decoder")
REAL, GENERATED = "latents of real images", "latents of generated images"


def export_page(model: LatentFlow, folder: Path, points: np.ndarray, labels: np.ndarray, source: str) -> None:
    """Write what the page loads.

    Args:
        points: normalised latents, (n, c, h, w).
        labels: (n,) of them.
        source: what they are latents of, in words for the page.
    """
    description = export_onnx(model, folder, flow_map=False)
    files = {}
    for name in FILES:
        content = packed((folder / f"{name}.onnx").read_bytes())
        (folder / f"{name}.onnx").unlink()
        (folder / f"{name}.bin").write_bytes(content)
        files[f"{name}.bin"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "model.json").write_text(json.dumps(description | {"files": files}, indent=2) + "\n", encoding="utf-8")
    (folder / "cloud.json").write_text(json.dumps(cloud(points, labels, source)) + "\n", encoding="utf-8")


def packed(content: bytes) -> bytes:
    """Even bytes, then odd ones, compressed: float16 weights become a tenth smaller than they would side by side."""
    return gzip.compress(content[::2] + content[1::2], 9, mtime=0)


def cloud(points: np.ndarray, labels: np.ndarray, source: str) -> dict[str, object]:
    """Latents in their first two principal components."""
    flat = points.reshape(len(points), -1).astype(np.float64)
    mean = flat.mean(0)
    components = np.linalg.svd(flat - mean, full_matrices=False)[2][:2]
    components *= np.sign(components[range(2), np.abs(components).argmax(1)])[:, None]  # either sign would do
    return {
        "source": source,
        "mean": mean.round(6).tolist(),
        "components": components.round(6).tolist(),
        "points": ((flat - mean) @ components.T).round(2).tolist(),
        "labels": labels.tolist(),
    }


def generated(model: LatentFlow) -> tuple[np.ndarray, np.ndarray]:
    """Latents and labels of generated images, for a model without its training data."""
    n = LATENTS // max(1, model.classes)
    labels = np.arange(model.classes) if model.classes else None
    drawn = model.sample(labels, n, seed=SEED, output_type="latent", batch_size=200)
    assert isinstance(drawn.images, torch.Tensor)
    return drawn.images.numpy(), drawn.labels


def real(model: LatentFlow, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first training latents, normalised, and their labels."""
    with hdf5.reading(path, latents.FORMAT) as file:
        latents.check_autoencoder(file, path, model.config["autoencoder_sha256"])
        count = min(LATENTS, file.shape("train/labels")[0])
        mean, labels = (file.read(f"train/{name}", 0, count) for name in ("mean", "labels"))
    return model.scale.normalise(torch.from_numpy(mean)).numpy(), labels


def main(context: Context) -> None:
    if context.entry.name == "bundled":
        model = LatentFlow.from_pretrained(context.input("mnist"))
        points, labels, source = *generated(model), GENERATED
    else:
        model = LatentFlow.from_pretrained(context.input("latent_flow"))
        points, labels, source = *real(model, context.input("latents")), REAL
    with context.publish(context.entry.name) as part:
        export_page(model, part, points, labels, source)


if __name__ == "__main__":
    run(main, pipeline=WEB / "dvc.yaml")

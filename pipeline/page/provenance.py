"""What a report was made from: every parameter, and the checksums of data and weights."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import read_json
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.params import Params

PACKAGES = ("torch", "diffusers", "torchdiffeq", "numpy", "scipy", "scikit-learn")


def weights_sha256(folder: Path) -> str:
    """sha256 of a model's weights, in hexadecimal."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def parameters(p: Params) -> list[tuple[str, str]]:
    """(section, its parameters as params.yaml has them) of each section that can change a result."""
    return [(name, _yaml(section)) for name, section in p.model_dump(exclude={"runtime"}).items()]


def provenance(images: ArrayFile, flow: Path, classifier: Path) -> list[tuple[str, str]]:
    """(name, value) of what identifies data, weights and packages. Raises `UserError` where flow.json is damaged."""
    facts = [(f"{split} images", f"sha256 {images.attribute(f'{split}_sha256')}") for split in ("train", "test")]
    facts += [(f"{folder.name} weights", f"sha256 {weights_sha256(folder)}") for folder in (classifier, flow)]
    autoencoder = read_json(flow / "flow.json", autoencoder_sha256=str)["autoencoder_sha256"]
    facts.append(("autoencoder", f"sha256 {autoencoder}"))
    if "broken" in images.attributes:
        facts.append(("broken images left out", str(images.attributes["broken"])))
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [*facts, ("versions", f"Python {platform.python_version()}, {packages}")]


def _yaml(section: dict[str, Any]) -> str:
    """Parameters on one line: null and true, not None and True."""
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in section.items()
    )

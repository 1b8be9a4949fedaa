"""Not a stage: what the report was made from: every parameter, and the checksums of data and weights."""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import CLASSIFIER, FLOW, read_json
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.page.html import cards, table, titled
from pipeline.params import Params

PACKAGES = ("torch", "diffusers", "torchdiffeq", "numpy", "scipy", "scikit-learn")


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def provenance(p: Params, images: ArrayFile) -> str:
    """Two cards of the page."""
    facts = [(f"{split} images", f"sha256 {images.attribute(f'{split}_sha256')}") for split in ("train", "test")]
    facts += [(f"{f.name} weights", f"sha256 {sha256(f / 'model.safetensors')}") for f in (CLASSIFIER, FLOW)]
    facts.append(
        ("autoencoder", f"sha256 {read_json(FLOW / 'flow.json', autoencoder_sha256=str)['autoencoder_sha256']}")
    )
    if "broken" in images.attributes:
        facts.append(("broken images left out", str(images.attributes["broken"])))
    facts.append(
        ("versions", ", ".join([f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in PACKAGES)]))
    )
    values = [(name, _said(leaves)) for name, leaves in p.model_dump(exclude={"runtime"}).items()]
    return cards(titled("params.yaml", table((), values, "text")), titled("Provenance", table((), facts, "text")))


def _said(leaves: dict[str, Any]) -> str:
    """Parameters as params.yaml has them: null and true, not None and True."""
    return ", ".join(f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in leaves.items())

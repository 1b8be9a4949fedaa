"""Where each artifact lies, what identifies a folder of them, and how small text files are written."""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

IMAGES = Path("data/images.h5")
LATENTS = Path("data/latents.h5")
SAMPLES = Path("data/samples.h5")
AUTOENCODER = Path("models/autoencoder")
CLASSIFIER = Path("models/classifier")
FLOW = Path("models/flow")
REPORTS = Path("reports")
METRICS = REPORTS / "metrics.json"
PRETRAINED = Path("lfm/pretrained")
PARAMS = Path("params.yaml")

SPLITS = ("train", "validation", "test")


def sha256_of(folder: Path, names: Iterable[str]) -> str:
    """sha256 of some files of a folder, their names included. Raises `UserError` where one is missing."""
    total = hashlib.sha256()
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: holds no {name}; it must hold {' and '.join(names)}")
        total.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that a person can read and git can diff."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; floats with six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)

"""Where each artifact lies, what identifies a folder of them, how one takes its place, and how small text is written."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.params import shown

IMAGES = Path("data/images.h5")
LATENTS = Path("data/latents.h5")
SAMPLES = Path("data/samples.h5")
AUTOENCODER = Path("models/autoencoder")
CLASSIFIER = Path("models/classifier")
FLOW = Path("models/flow")
REPORTS = Path("reports")
METRICS = REPORTS / "metrics.json"
LIKELIHOOD = REPORTS / "likelihood.json"
PRETRAINED = Path("lfm/pretrained")
PARAMS = Path("params.yaml")

# What the root attribute `format` of each HDF5 file says; a file of another kind or version is refused.
IMAGES_FORMAT = "lfm-images/1"
LATENTS_FORMAT = "lfm-latents/1"
PROGRESS_FORMAT = "lfm-progress/1"
SAMPLES_FORMAT = "lfm-samples/1"

SPLITS = ("train", "validation", "test")

# What must hold when an artifact takes its place: each raises where it does not. `pipeline.machine.fingerprint` adds to it.
CHECKS: list[Callable[[], None]] = []


def given(place: str | Path) -> Path:
    """A path from params.yaml or the environment: relative ones are meant in the project where DVC was started, also in its
    temporary workspaces."""
    return Path(os.environ.get("DVC_ROOT", ".")) / Path(place).expanduser()


def sha256_of(folder: Path, names: Iterable[str]) -> str:
    """sha256 of some files of a folder, their names included. Raises `UserError` where one is missing."""
    total = hashlib.sha256()
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: holds no {name}; it must hold {' and '.join(names)}")
        total.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file to, which takes the place of `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        for check in CHECKS:
            check()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well, and vanishes otherwise."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for check in CHECKS:
            check()
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_json(path: Path, /, **kinds: Any) -> dict[str, Any]:
    """Read a JSON object. Raises `UserError` where it is missing or damaged, or where the value of a key is not of its
    kind, a type as pydantic takes it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run `dvc repro` to make it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); delete it and run `dvc repro`") from error
    missing = [key for key in kinds if not isinstance(value, dict) or key not in value]
    if missing:
        raise UserError(f"{path}: has no '{missing[0]}'; delete it and run `dvc repro`")
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; delete it and run `dvc repro`")
    for key, kind in kinds.items():
        try:
            TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value[key])
        except ValidationError as error:
            raise UserError(
                f"{path}: '{key}' is {shown(value[key])}, which can't be; delete it and run `dvc repro`"
            ) from error
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that a person can read and git can diff."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; floats with six significant digits."""
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)


def read_csv(path: Path, *columns: str) -> dict[str, list[str]]:
    """The columns of a table. Raises `UserError` where it is missing or lacks one of those named."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `dvc repro` to make it")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, found = list(reader), reader.fieldnames or ()
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a table ({error}); delete it and run `dvc repro`") from error
    missing = [name for name in columns if name not in found]
    if missing:
        raise UserError(f"{path}: has no column '{missing[0]}'; delete it and run `dvc repro`")
    if not rows or any(None in row or None in row.values() for row in rows):
        raise UserError(
            f"{path}: holds no rows, or one of another length than its header; delete it and run `dvc repro`"
        )
    return {name: [row[name] for row in rows] for name in found}

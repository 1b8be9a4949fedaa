"""Small text files: JSON and CSV."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.params import format_value


def read_json(path: Path, /, **kinds: Any) -> dict[str, Any]:
    """Read a JSON object. Raises `UserError` where it is missing or damaged, or where the value of a key is not of its
    kind, a type as pydantic takes it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run `dvc repro` to make it") from error
    except (ValueError, RecursionError) as error:
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
            reason = error.errors()[0]["msg"]
            raise UserError(
                f"{path}: '{key}' is {format_value(value[key])} ({reason}); delete it and run `dvc repro`"
            ) from error
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that a person can read and git can diff. Raises `UserError` where a number is not finite."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path.name}: a value is not finite ({error}), so nothing was written") from error
    path.write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; floats with six significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
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
            rows, names = list(reader), reader.fieldnames or ()
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a table ({error}); delete it and run `dvc repro`") from error
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(f"{path}: has no column '{missing[0]}'; delete it and run `dvc repro`")
    if not rows or any(None in row or None in row.values() for row in rows):
        raise UserError(
            f"{path}: holds no rows, or one of another length than its header; delete it and run `dvc repro`"
        )
    return {name: [row[name] for row in rows] for name in names}

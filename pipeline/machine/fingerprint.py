"""What a stage's result follows from, taken when it starts: its parameters, inputs and code, and the machine.

dvc.yaml is the one home of that list. The fingerprint names the scratch folder in which the stage's unfinished work lies,
and is compared again before anything is published: DVC hashes dependencies after the command, and would record what was
edited meanwhile as what the result was made from.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from pipeline.artifacts import files
from pipeline.errors import UserError
from pipeline.machine.runtime import machine
from pipeline.params import Loader, Params, load_params

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "diffusers", "torchdiffeq")


class Input(NamedTuple):
    stamps: list[tuple[str, int, int, int]]  # of each file: name, time of change, size, inode
    digest: str  # sha256 of names and contents


class Fingerprint:
    """Of the stage `name` of dvc.yaml, or of another such `file`, which reads `sections` of params.yaml."""

    def __init__(self, name: str, sections: Sequence[str], params: Params, file: str = "dvc.yaml") -> None:
        stage = yaml.load(Path(file).read_text(encoding="utf-8"), Loader)["stages"][name]
        self.name, self.cmd = name, stage["cmd"]
        self.params = {section: getattr(params, section) for section in sections}
        missing = next((dep for dep in stage["deps"] if not Path(dep).exists()), None)
        if missing:
            raise UserError(f"{missing}: no such file or folder; run `dvc repro` to make it")
        self.inputs = {Path(dep): Input(_stamps(Path(dep)), _digest(Path(dep))) for dep in stage["deps"]}

    def key(self) -> str:
        """sha256 of all of it: equal where a run may go on with what another one left."""
        parts = {
            "cmd": self.cmd,
            "params": {section: values.model_dump() for section, values in self.params.items()},
            "inputs": {str(path): found.digest for path, found in self.inputs.items()},
            "machine": machine(),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """Raises `UserError` that names what moved since the start. Contents are read again only where times differ."""
        now = load_params(files.PARAMS)
        for section, values in self.params.items():
            if getattr(now, section) != values:
                raise UserError(f"{files.PARAMS}: {section} was edited while this stage ran; run `dvc repro` again")
        for path, start in self.inputs.items():
            if _stamps(path) != start.stamps and _digest(path) != start.digest:
                raise UserError(f"{path}: changed while this stage ran; run `dvc repro` again")


def _files(path: Path) -> list[Path]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and file.parent.name != "__pycache__"]


def _stamps(path: Path) -> list[tuple[str, int, int, int]]:
    return [(str(file), (s := file.stat()).st_mtime_ns, s.st_size, s.st_ino) for file in _files(path)]


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as content:
            total.update(str(file).encode() + b"\0" + hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


_current: list[Fingerprint] = []


def current() -> Fingerprint | None:
    """That of the stage which runs in this process."""
    return _current[-1] if _current else None


@contextmanager
def guarding(found: Fingerprint) -> Iterator[None]:
    """While the block runs, nothing is published once what the stage started from has moved."""
    _current.append(found)
    files.CHECKS.append(found.check)
    try:
        yield
    finally:
        files.CHECKS.pop()
        _current.pop()

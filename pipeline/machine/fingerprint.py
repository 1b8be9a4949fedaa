"""What a stage's result follows from, taken when it starts: its parameters, inputs and code, and the machine.

The fingerprint names the scratch folder in which the stage's unfinished work lies, and is compared again before anything is
published: DVC hashes dependencies after the command, and would record what was edited meanwhile as what the result was
made from.
"""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import NamedTuple

from pipeline import START_NS
from pipeline.entry import Entry
from pipeline.errors import UserError
from pipeline.machine.device import machine
from pipeline.params import Params

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "diffusers", "torchdiffeq")


class Input(NamedTuple):
    stamps: list[tuple[str, int, int, int]]  # of each file: name, time of change, size, inode
    digest: str  # sha256 of names and contents


class Fingerprint:
    """Of a stage that is about to work."""

    def __init__(self, entry: Entry, params: Params) -> None:
        self.entry = entry
        self.params = {section: getattr(params, section) for section in entry.sections}
        missing = next((dep for dep in entry.deps if not dep.exists()), None)
        if missing:
            raise UserError(f"{missing}: no such file or folder; run `dvc repro` to make it")
        edited = next((s[0] for d in entry.deps for s in _stamps(d) if s[0].endswith(".py") and s[1] > START_NS), None)
        if edited:  # what Python has imported may be older than what is hashed below
            raise UserError(f"{edited}: changed while this stage started; run `dvc repro` again")
        self.inputs = {dep: Input(_stamps(dep), _digest(dep)) for dep in entry.deps}

    def key(self) -> str:
        """sha256 of all of it: equal where a run may go on with what another one left."""
        parts = {
            "cmd": self.entry.cmd,
            "params": {section: values.model_dump() for section, values in self.params.items()},
            "inputs": {str(path): content.digest for path, content in self.inputs.items()},
            "machine": machine(),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """Raises `UserError` that names what moved since the start. Contents are read again only where times differ."""
        now = self.entry.params()
        for section, values in self.params.items():
            if getattr(now, section) != values:
                file = self.entry.sections[section]
                raise UserError(f"{file}: {section} was edited while this stage ran; run `dvc repro` again")
        for path, start in self.inputs.items():
            if _stamps(path) != start.stamps and _digest(path) != start.digest:
                raise UserError(f"{path}: changed while this stage ran; run `dvc repro` again")


def _files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in files if file.is_file() and file.parent.name != "__pycache__"]


def _stamps(path: Path) -> list[tuple[str, int, int, int]]:
    return [(str(file), (s := file.stat()).st_mtime_ns, s.st_size, s.st_ino) for file in _files(path)]


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as content:
            total.update(str(file).encode() + b"\0" + hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()

"""What a stage's result follows from, taken when it starts: its parameters, inputs and code, and the machine.

The fingerprint names the scratch folder in which the stage's unfinished work lies, and is compared again before anything is
published: DVC hashes dependencies after the command, and would record what was edited meanwhile as what the result was
made from. Under DVC, inputs that other stages made are compared with dvc.lock too: DVC trusts its cache, and restores and
records a corrupt file under the md5 of the intact one.
"""

import hashlib
import importlib.metadata
import json
import os
import time
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import START_NS
from pipeline.entry import PIPELINE, Entry
from pipeline.errors import UserError
from pipeline.machine.device import machine
from pipeline.params import Params, load_tree

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "diffusers", "torchdiffeq")


class Stamp(NamedTuple):
    """Of one file: what differs once it was edited, moved or replaced, whatever its time of modification says."""

    name: str
    modified_ns: int
    changed_ns: int  # also by a rename; it can't be set
    size: int
    inode: int


class Input(NamedTuple):
    stamps: list[Stamp]
    digest: str  # md5 of names and contents, as DVC records it


class Fingerprint:
    """Of a stage that is about to work."""

    def __init__(self, entry: Entry, params: Params) -> None:
        self.entry = entry
        self.params = {section: getattr(params, section) for section in entry.sections}
        missing = next((dep for dep in entry.deps if not dep.exists()), None)
        if missing:
            raise UserError(f"{missing}: no such file or folder; run `dvc repro` to make it")
        for stamp in (s for dep in entry.deps for s in _stamps(dep) if s.name.endswith(".py")):
            # What Python has imported may be older than what is hashed below.
            if START_NS < stamp.changed_ns <= time.time_ns():
                raise UserError(f"{stamp.name}: changed while this stage started; run `dvc repro` again")
            _check_bytecode(stamp)
        self.inputs = {dep: Input(_stamps(dep), _digest(dep)) for dep in entry.deps}
        if "DVC_STAGE" in os.environ:
            self._check_recorded()

    def _check_recorded(self) -> None:
        """Raises `UserError` where an input isn't what dvc.lock says that another stage made."""
        lock = PIPELINE.with_suffix(".lock")
        stages: dict[str, Any] = load_tree(lock).get("stages", {}) if lock.exists() else {}
        recorded = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", [])}
        for path, content in self.inputs.items():
            if content.digest != (expected := recorded.get(str(path)) or content.digest):
                raise UserError(
                    f"{path}: corrupt, or edited by hand (its md5 is {content.digest}, in {lock} {expected}); run `make mend`, "
                    f"which removes corrupt files from DVC's cache, delete {path} and run `dvc repro`"
                )

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
            if _stamps(path) != start.stamps and not (path.exists() and _digest(path) == start.digest):
                raise UserError(f"{path}: changed while this stage ran; run `dvc repro` again")


def _files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in files if file.is_file() and file.parent.name != "__pycache__"]


def _stamps(path: Path) -> list[Stamp]:
    stats = ((file, file.stat()) for file in _files(path))
    return [Stamp(str(file), s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for file, s in stats]


def _check_bytecode(source: Stamp) -> None:
    """Raises `UserError` where Python took older bytecode for a module: it compares whole seconds and the size alone. That
    bytecode is removed."""
    bytecode = Path(cache_from_source(source.name))
    if not bytecode.is_file() or bytecode.stat().st_mtime_ns >= source.modified_ns:
        return
    header = bytecode.read_bytes()[8:16]
    if header == (source.modified_ns // 10**9 & 0xFFFFFFFF).to_bytes(4, "little") + source.size.to_bytes(4, "little"):
        bytecode.unlink()
        raise UserError(f"{source.name}: changed within a second of its last import; run `dvc repro` again")


def _digest(path: Path) -> str:
    """md5 of a file, or of a folder's list of files, as DVC makes them."""
    if not path.is_dir():
        return _md5(path)
    files = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in _files(path)]
    listed = json.dumps(sorted(files, key=lambda f: f["relpath"]), sort_keys=True).encode()
    return hashlib.md5(listed, usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

"""Unfinished work that survives the process: files of tensors in a folder that is no out and belongs to one fingerprint.

`.dvc/tmp/lfm/STAGE/KEY/`, in the repository where DVC was started, also for its temporary workspaces. A file's name holds
the sha256 of its content, so that a truncated or altered one is recognised, named and left out. Tensors alone,
as safetensors: nothing that is read here can run code.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.machine.process import alone, try_lock
from pipeline.machine.publish import replacing
from pipeline.paths import scratch_home, started_in
from pipeline.progress import say

KEPT_KEYS, UNFINISHED_DAYS = 3, 30  # what is finished, and what was ended and never gone on with
LOCK, DONE = "lock", "done"


def home() -> Path:
    """Where the scratch folders of all stages lie."""
    return scratch_home(started_in())


class Scratch:
    """One stage's folder; None: nothing is kept."""

    def __init__(self, folder: Path | None = None, stage: str = "stage") -> None:
        self.folder, self.stage = folder, stage

    def write(self, name: str, tensors: dict[str, Tensor], lasting: bool = True) -> None:
        """Keep tensors under a name without dots. `lasting`: also when the power fails, for a few milliseconds."""
        if self.folder is None:
            return
        content = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
        path = self.folder / f"{name}.{hashlib.sha256(content).hexdigest()}.safetensors"
        with replacing(path) as part, part.open("wb") as file:
            file.write(content)
            file.flush()
            if lasting:
                os.fsync(file.fileno())

    def find(self, pattern: str) -> list[Path]:
        """Files whose name matches, in the order of their names."""
        return sorted(self.folder.glob(f"{pattern}.*.safetensors")) if self.folder else []

    def read(self, path: Path) -> dict[str, Tensor] | None:
        """What `write` kept; None where it is damaged, which is told, and the file removed."""
        content = path.read_bytes()
        if path.name.split(".")[1] == hashlib.sha256(content).hexdigest():
            with suppress(SafetensorError):
                return {k: v.clone() for k, v in load(content).items()}  # the loaded ones share one block
        say(f"{self.stage}: {path} is damaged (its sha256 is another one than its name says) and left out")
        path.unlink()
        return None

    def part(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What `make` gives, or what it gave under this name before the process was ended."""
        for path in self.find(name):
            if (tensors := self.read(path)) is not None:
                return {k: v.numpy() for k, v in tensors.items()}
        made = {k: np.asarray(v, order="C") for k, v in make().items()}  # sums depend on the order in memory
        self.write(name, {k: torch.from_numpy(v) for k, v in made.items()}, lasting=False)
        return made


@contextmanager
def opened(stage: str, key: str) -> Iterator[Scratch]:
    """The folder of a stage and a fingerprint, for this process alone; those of older fingerprints are removed.

    Where another process works there, in another workspace, this one waits, and then reuses what is done.
    """
    folder = home() / stage / key
    with alone(folder / LOCK, waiting=stage):
        for part in folder.glob("*.part"):
            part.unlink()
        os.utime(folder)
        _clean(folder.parent)
        yield Scratch(folder, stage)
        (folder / DONE).touch()


def _clean(stage: Path) -> None:
    """Remove all finished folders but the newest few, and those left unfinished for long; never one at work."""
    folders = sorted((f for f in stage.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime_ns, reverse=True)
    finished = [folder for folder in folders if (folder / DONE).exists()]
    oldest = time.time() - UNFINISHED_DAYS * 24 * 3600
    left = [folder for folder in folders if folder not in finished and folder.stat().st_mtime < oldest]
    for folder in finished[KEPT_KEYS:] + left:
        lock = try_lock(folder / LOCK)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

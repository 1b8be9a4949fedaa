"""What `dvc` can't read any more when it was killed while it wrote it, and corrupt files in its cache; `make mend` removes
both, when no `dvc` is at work. `make repro` does so first, but for reading the cache (`--no-cache`).

DVC writes its own records in place: dvc.lock, the lock file of its readers and writers, and entries of its run cache. No
stage has a part in that. `dvc repro` then ends with an error that names one of them; without it DVC makes it anew, and takes
what was done from its cache, so nothing is run again. A file in the cache that is not what its name says, its md5, would be
restored as it is.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from dvc.config import Config
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc_data.hashfile.hash import file_md5
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from pipeline.params import load_yaml
from pipeline.paths import dvc_root

COPIES = "data", "models", "reports"  # folders to which DVC copies under a temporary name first, beside its cache
TEMPORARY = f".{'?' * 22}.tmp"
# Of `dvc`, what reads alone: an editor's panel calls these every few seconds.
READERS = re.compile(
    r"artifacts|check-ignore|completion|config|daemon|dag|data|diff|doctor|du|get|get-url|help|list|list-url|ls|metrics|params|"
    r"plots|root|status|studio|version|(exp|experiments) (show|list|ls|diff)|queue (status|logs)|remote list|stage list"
)


def mend(project: Path, cache: bool = True) -> list[Path]:
    """Remove every dvc.lock of the repository and its rwlock where they are cut short, rwlock also where a process holds it
    that is no `dvc`, and empty folders of the run cache; half a copy that DVC left, which is in nobody's way; and, with
    `cache`, corrupt files in the cache. Returns what was removed."""
    root = dvc_root(project)
    dvc = root / ".dvc"
    store = Path(Config(str(dvc), validate=False)["cache"].get("dir") or dvc / "cache")  # wherever the user has put it
    readers, objects = dvc / "tmp/rwlock", store / "files/md5"
    paths = [project / os.path.relpath(lock, project) for lock in _locks(root) if not _whole_lock(lock)]
    paths += [] if _holders(readers) <= {process.pid for process in _processes(root)} else [readers]
    paths += [f for f in sorted((store / "runs").glob("*/*")) if f.is_dir() and not any(f.iterdir())]
    paths += [f for folder in (*(project / c for c in COPIES), objects) for f in sorted(folder.rglob(TEMPORARY))]
    paths += [f for f in sorted(objects.glob("??/" + "?" * 30 + "*")) if not _whole(f)] if cache else []
    for path in paths:
        path.rmdir() if path.is_dir() else path.unlink()
    return paths


def _locks(root: Path) -> Iterator[Path]:
    """Every dvc.lock of a repository, but for other ones within it: DVC reads all of them, whichever project it works in."""
    for folder, folders, files in os.walk(root):
        within = ".dvc" in folders and Path(folder) != root
        folders[:] = [] if within else sorted(n for n in folders if not n.startswith(".") and n != "node_modules")
        if "dvc.lock" in files and not within:
            yield Path(folder, "dvc.lock")


def _whole_lock(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
        if "<<<<<<<" not in text:  # a merge is git's to end
            COMPILED_LOCKFILE_SCHEMA(load_yaml(text))
    except (YAMLError, ValueError, Invalid):
        return False
    return True


def _holders(path: Path) -> set[int]:
    """PIDs in DVC's lock file of readers and writers; {0}, nobody's, where it is cut short."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        infos = [*content.get("write", {}).values(), *(i for held in content.get("read", {}).values() for i in held)]
        return {info["pid"] for info in infos}
    except (ValueError, AttributeError, TypeError, KeyError):
        return {0}


def _whole(path: Path) -> bool:
    """Whether a file in the cache is what its name says."""
    return path.parent.name + path.name.removesuffix(".dir") == file_md5(str(path))


def _processes(root: Path) -> Iterator[psutil.Process]:
    """Those of `dvc`, or of a stage, in this repository or one of its temporary workspaces."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, folder = process.info["cmdline"] or [], Path(process.info["cwd"] or "/")
        ours = any(Path(word).name == "dvc" or word.startswith(("stages.", "sweeps.")) for word in words[:4])
        if ours and (folder == root or root in folder.parents):
            yield process


def at_work(project: Path) -> list[int]:
    """The PIDs of those that may write in the project's repository."""
    return [process.pid for process in _processes(dvc_root(project)) if not _only_reads(process.info["cmdline"])]


def _only_reads(words: list[str]) -> bool:
    names = [Path(word).name for word in words[:4]]
    if "dvc" not in names:
        return False
    arguments = [word for word in words[names.index("dvc") + 1 :] if not word.startswith("-")]
    return any(READERS.fullmatch(" ".join(arguments[:n])) for n in (1, 2))


if __name__ == "__main__":
    if working := at_work(Path()):
        print(
            f"error: `dvc` is at work here (process {working[0]}); wait for it or stop it, then run again",
            file=sys.stderr,
        )
        sys.exit(2)
    for removed in mend(Path(), cache="--no-cache" not in sys.argv):
        print(f"{removed}: half-written or corrupt; removed", file=sys.stderr)

"""What `dvc` can't read any more when it was killed while it wrote it; `make mend` removes it, when no `dvc` is at work.

DVC writes its own records in place: dvc.lock, the lock file of its readers and writers, and entries of its run cache. No
stage has a part in that. `dvc repro` then ends with an error that names one of them; without it DVC makes it anew, and takes
what was done from its cache, so nothing is run again.
"""

import json
import sys
from pathlib import Path

import psutil
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import Invalid

LOCKS, READERS, RUNS = (Path("dvc.lock"), Path("sweeps/dvc.lock")), Path(".dvc/tmp/rwlock"), Path(".dvc/cache/runs")
COPIES = "data", "models", "reports", ".dvc/cache/files/md5"  # folder DVC copies to a temporary name first
TEMPORARY = f".{'?' * 22}.tmp"


def mend(project: Path) -> list[Path]:
    """Remove dvc.lock and rwlock folder they are cut short, and empty folders of the run cache; also half a copy that DVC
    left, which is in nobody's way. Returns what was removed."""
    paths = [project / name for name in LOCKS if not _lock(project / name)]
    paths += [] if _readers(project / READERS) else [project / READERS]
    paths += [f for f in sorted((project / RUNS).glob("*/*")) if f.is_dir() and not any(f.iterdir())]
    paths += [f for folder in COPIES for f in sorted((project / folder).rglob(TEMPORARY))]
    for path in paths:
        path.rmdir() if path.is_dir() else path.unlink()
    return paths


def _lock(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else None
        if text is not None and "<<<<<<<" not in text:  # a merge is git's to end
            COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, Invalid):
        return False
    return True


def _readers(path: Path) -> bool:
    try:
        return not path.exists() or isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except ValueError:
        return False


def at_work(project: Path) -> list[int]:
    """Processes of `dvc`, or of a stage, in this project or one of its temporary workspaces."""
    pids = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words, folder = process.info["cmdline"] or [], Path(process.info["cwd"] or "/")
        ours = any(Path(word).name == "dvc" or word.startswith(("stages.", "sweeps.")) for word in words[:4])
        if ours and (folder == project or project in folder.parents):
            pids.append(int(process.info["pid"]))
    return pids


if __name__ == "__main__":
    if working := at_work(Path.cwd().resolve()):
        print(
            f"error: `dvc` is at work here (process {working[0]}); wait for it or stop it, then run again",
            file=sys.stderr,
        )
        sys.exit(2)
    for removed in mend(Path()):
        print(f"{removed}: `dvc` was killed while it wrote it; removed", file=sys.stderr)

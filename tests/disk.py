"""Fills the disk under every stage at 20 sizes, where its outs lie and where its unfinished work does.

`python -m tests.disk [--stages fetch,train] [--sizes 20]`, as root. Each time the stage has to end with exit code 2 and one
line, leaving nothing half-written and all else as it was, or to fit and make the same bytes. Afterwards, with room, it has to
make the same bytes. Prints the table of docs/robustness.md; the exit code is 1 where a case went wrong.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from pipeline.entry import read_entry
from tests.conftest import ROOT, STAGES, arguments, command, repro, run_stage, set_params
from tools.workspace import make_workspace, outs

FULL = ": no space left on device; free some, then run"
SCRATCH = Path(".dvc/tmp")
PAGE, ROOM = os.sysconf("SC_PAGE_SIZE"), 1 << 16  # bytes of a page; pages that are enough for anything


class NoMount(Exception):
    """Mounting needs root."""


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Something else at the place of `folder`, for a while. Raises `NoMount` where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if command("mount", *options, str(folder), cwd=Path("/")).returncode:
        raise NoMount
    try:
        yield
    finally:
        command("umount", "-l", str(folder), cwd=Path("/"))


@contextmanager
def on_its_own_disk(folder: Path) -> Iterator[None]:
    """The folder with all it holds on a file system of its own, which `limit` makes small; what changes there is lost."""
    with tempfile.TemporaryDirectory() as beside:
        shutil.copytree(folder, beside, dirs_exist_ok=True) if folder.exists() else None
        with mounted(folder.resolve(), "-t", "tmpfs", "tmpfs"):
            shutil.copytree(beside, folder, dirs_exist_ok=True)
            yield


def limit(folder: Path, pages: int) -> None:
    """Let the disk of `folder` have so many pages in all."""
    size = str(pages * PAGE)
    assert command("mount", "-o", f"remount,size={size}", str(folder.resolve()), cwd=Path("/")).returncode == 0


def used(folder: Path) -> int:
    """Pages of the files in a folder."""
    return sum(-(-f.stat().st_size // PAGE) for f in folder.rglob("*") if f.is_file())


def fork(stage: str, log: Path) -> tuple[int, str]:
    """Run a stage in a child of this process. Returns the exit code and stderr."""
    child = os.fork()
    if not child:
        code = 1
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 2)
            run_stage(stage)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, log.read_text(encoding="utf-8", errors="replace")


def forget(stage: str, work: bool) -> None:
    """Remove a stage's outs and, with `work`, what it keeps in scratch."""
    for out in read_entry(stage).outs:
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    if work:
        shutil.rmtree(SCRATCH / "lfm" / stage, ignore_errors=True)


def places(stage: str) -> list[Path]:
    """The folders that a stage writes to."""
    return [*sorted({out.parent for out in read_entry(stage).outs}), SCRATCH]


class Filled(NamedTuple):
    """What became of one folder's sizes."""

    ended: int  # with exit code 2
    fitted: int
    wrong: list[str]


def fill(stage: str, folder: Path, sizes: int, whole: dict[str, str], log: Path) -> Filled:
    """All sizes of the disk under one folder."""
    codes, wrong, in_scratch = list[int](), list[str](), folder == SCRATCH
    with on_its_own_disk(folder):
        forget(stage, in_scratch)
        before = used(folder)
        fork(stage, log)
        written = used(folder) - before
        for more in sorted({max(1, written * k // (sizes + 1)) for k in range(1, sizes + 1)}):
            forget(stage, in_scratch)
            others = outs(Path())
            limit(folder, before + more)
            code, told = fork(stage, log)
            limit(folder, ROOM)
            codes.append(code)
            line = told.strip().rpartition("\n")[2]
            left = [str(p) for place in ("data", "models", "reports") for p in Path(place).rglob("*.part")]
            good = code == 0 or (code == 2 and line.startswith("error: ") and FULL in line and "Traceback" not in told)
            if not good or left or outs(Path()) != (others if code else whole):
                wrong.append(f"{stage}, {folder}, {more} of {written} pages: exit code {code}, {left}, {told[-800:]}")
        code, told = fork(stage, log)
        if code or outs(Path()) != whole:
            wrong.append(f"{stage}, {folder}, with room again: exit code {code}, {told[-800:]}")
    return Filled(sum(map(bool, codes)), codes.count(0), wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--workspace", type=Path, help="one in which everything has run; by default a new one")
    flags = parser.parse_args()
    began, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        workspace, log = folder / "work", folder / "log"
        if flags.workspace:
            shutil.copytree(flags.workspace, workspace, ignore=shutil.ignore_patterns("cache", "tmp"))
        else:
            make_workspace(ROOT, workspace, ROOT / "presets/tiny")
            repro(workspace)
        set_params(workspace, runtime__progress=False, runtime__checkpoint_every=5)
        at_home(workspace)
        whole = outs(Path())
        print("| stage | where the disk fills | sizes | exit 2 | fitted | wrong |\n|---|---|---|---|---|---|")
        for stage in flags.stages.split(","):
            for place in places(stage):
                found = fill(stage, place, flags.sizes, whole, log)
                cases = (found.ended + found.fitted, found.ended, found.fitted, len(found.wrong))
                print(f"| {stage} | {place} | {' | '.join(map(str, cases))} |", flush=True)
                print("\n".join(found.wrong), file=sys.stderr)
                failed += len(found.wrong)
        os.chdir("/")
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(bool(failed))


def at_home(workspace: Path) -> None:
    """Let stages run in a workspace in this process and its children."""
    from pipeline import run as runner
    from pipeline.machine import fingerprint

    os.chdir(workspace)
    os.environ["LFM_DEVICE"] = "cpu"
    runner.__file__ = str(workspace / "pipeline/run.py")
    fingerprint.START_NS = 2**63  # the workspace is younger than this process
    for stage in STAGES:
        import_module(arguments(stage)[1])


if __name__ == "__main__":
    main()

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.entry import read_entry
from tests.conftest import STAGES, command
from tests.trials import SCRATCH, at_home, forget, fork, half_written, prepared
from tools.workspace import outs

FULL = ": no space left on device; free some, then run"
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
        forget(stage, work=in_scratch)
        before = used(folder)
        fork(stage, log)
        written = used(folder) - before
        for more in sorted({max(1, written * k // (sizes + 1)) for k in range(1, sizes + 1)}):
            forget(stage, work=in_scratch)
            others = outs(Path())
            limit(folder, before + more)
            code, told, _ = fork(stage, log)
            limit(folder, ROOM)
            codes.append(code)
            line = told.strip().rpartition("\n")[2]
            left = half_written()
            good = code == 0 or (code == 2 and line.startswith("error: ") and FULL in line and "Traceback" not in told)
            if not good or left or outs(Path()) != (others if code else whole):
                wrong.append(f"{stage}, {folder}, {more} of {written} pages: exit code {code}, {left}, {told[-800:]}")
        code, told, _ = fork(stage, log)
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
        log = folder / "log"
        at_home(prepared(folder, flags.workspace))
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


if __name__ == "__main__":
    main()

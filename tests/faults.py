"""Makes every stage's n-th call of open, write, fsync, rename and flock on a file of the project fail, for every n.

`python -m tests.faults [--stages fetch,train] [--sample 5] [--errors all]`. Each case has to end with exit code 2 and one line that
names the file, or do without the call; nothing may be left half-written, and the next run has to make the same bytes as an
undisturbed one. Prints the table of docs/robustness.md; the exit code is 1 where a case went wrong.

A case is a fork of one process that has imported everything, into which tests/faults.c is preloaded (Linux, glibc).
"""

import argparse
import ctypes
import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ENVIRONMENT, ROOT, STAGES
from tests.trials import OUTS, at_home, forget, fork, half_written, prepared

DISK = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)
CALLS = {
    "open": (*DISK[:3], errno.EACCES), "write": DISK, "fsync": DISK[:3], "rename": DISK[:3],
    "flock": (errno.ENOLCK, errno.EIO, errno.ENOSYS),
}  # fmt: skip


class Fault(NamedTuple):
    """The n-th call of a kind fails; n = 0: none does."""

    call: str
    n: int
    error: int

    def __str__(self) -> str:
        return f"{self.call} {self.n}, {errno.errorcode[self.error]}"


class Result(NamedTuple):
    """What became of a run."""

    code: int
    stderr: str
    counts: dict[str, int]
    file: str  # that of the call which failed, or empty


NONE = Fault("open", 0, errno.EIO)


def run(stage: str, fault: Fault, log: Path) -> Result:
    """Run a stage in a child of this process in which a call fails."""
    library = ctypes.CDLL(None)  # tests/faults.c, preloaded
    library.faults_count.restype, library.faults_failed.restype = ctypes.c_long, ctypes.c_char_p

    def arm() -> None:
        library.faults_arm(os.fsencode(Path.cwd()), list(CALLS).index(fault.call), ctypes.c_long(fault.n), fault.error)

    def seen() -> str:
        library.faults_disarm()
        counts = {call: library.faults_count(i) for i, call in enumerate(CALLS)}
        return json.dumps([counts, os.fsdecode(library.faults_failed())])

    ended = fork(stage, log, arm, seen)
    counts, file = json.loads(ended.answer) if ended.answer else ({}, "")
    return Result(ended.code, ended.stderr, counts, file)


def names(line: str, file: str) -> bool:
    """Whether a line names a file of the project, or a folder that holds it alone, by the name that it is to have."""
    path = Path(file.replace(".part", ""))
    return any(str(place) in line for place in (path, *path.parents) if place == path or len(place.parts) > 1)


def made() -> dict[str, str]:
    """sha256 of all that lies where outs do."""
    files = (file for folder in OUTS for file in sorted(Path(folder).rglob("*")) if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def trouble(stage: str, fault: Fault, whole: dict[str, str], log: Path) -> tuple[str, str]:
    """One case. Returns what it came to ("exit 2" or "done without"), and what was wrong."""
    forget(stage)
    result = run(stage, fault, log)
    lines = result.stderr.strip().splitlines()
    if result.code == 2:
        line = lines[-1] if lines else ""
        told = line.startswith("error: ") and "delete" not in line and names(line, result.file)  # its content is sound
        if not told or "Traceback" in result.stderr:
            return "exit 2", f"{result.file}: {result.stderr[-600:]}"
    elif result.code or not result.file:
        return f"exit {result.code}", f"{result.file or 'nothing failed'}: {result.stderr[-1500:]}"
    now = {name: digest for name, digest in made().items() if whole.get(name) != digest}
    if now or half_written():
        return "exit 2", f"{result.file}: half-written or other bytes: {[*now, *half_written()]}"
    again = run(stage, NONE, log) if result.code else result
    if again.code or made() != whole or half_written():
        return "exit 2", f"{result.file}: the next run ends with {again.code}: {again.stderr[-600:]} {half_written()}"
    return ("exit 2" if result.code else "done without"), ""


def cases(counts: dict[str, int], every_error: bool, sample: int | None, stage: str) -> list[Fault]:
    """All n of all calls, each with every error or with one in turn; or so many of them, drawn."""
    faults = [
        Fault(call, n, error)
        for call, errors in CALLS.items()
        for n in range(1, counts[call] + 1)
        for error in (errors if every_error else [errors[n % len(errors)]])
    ]
    if sample is None:
        return faults
    draw = random.Random(stage)
    kinds = [
        draw.sample(kind, len(kind)) for call in CALLS if (kind := [fault for fault in faults if fault.call == call])
    ]
    turns = zip_longest(*draw.sample(kinds, len(kinds)))  # one of each kind of call, then another
    return [fault for turn in turns for fault in turn if fault][:sample]


def torment(stages: list[str], every_error: bool, sample: int | None) -> int:
    """All cases, in the working directory, in which everything has run. Returns how many went wrong."""
    at_home(Path.cwd())
    wrong, totals = 0, Counter[str]()
    print("| stage | calls: open | write | fsync | rename | flock | faults | exit 2 | done without | wrong |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as beside:
        log, whole = Path(beside) / "log", made()
        for stage in stages:
            forget(stage)
            quiet = run(stage, NONE, log)
            if quiet.code or made() != whole:
                sys.exit(f"{stage}, undisturbed, ends with {quiet.code} or other bytes: {quiet.stderr[-2000:]}")
            kinds = Counter[str]()
            todo = cases(quiet.counts, every_error, sample, stage)
            for fault in todo:
                kind, what = trouble(stage, fault, whole, log)
                kinds["wrong" if what else kind] += 1
                if what:
                    print(f"{stage}: {fault}: {kind}: {what}", file=sys.stderr)
                    forget(stage)
                    run(stage, NONE, log)
            counts = " | ".join(str(quiet.counts[call]) for call in CALLS)
            print(
                f"| {stage} | {counts} | {len(todo)} | {kinds['exit 2']} | {kinds['done without']} | {kinds['wrong']} |",
                flush=True,
            )
            wrong, totals = wrong + kinds["wrong"], totals + kinds
    total = totals.total()
    print(f"| all | | | | | | {total} | {totals['exit 2']} | {totals['done without']} | {totals['wrong']} |")
    return wrong


def library(folder: Path) -> Path:
    """tests/faults.c, built."""
    target = folder / "faults.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", target, ROOT / "tests/faults.c", "-ldl"], check=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--errors", choices=("in-turn", "all"), default="in-turn", help="of each n")
    parser.add_argument("--sample", type=int, help="so many cases a stage, drawn, instead of all")
    parser.add_argument("--workspace", type=Path, help="one in which everything has run; by default a new one")
    flags = parser.parse_args()
    if "faults.so" in os.environ.get("LD_PRELOAD", ""):
        sys.exit(bool(torment(flags.stages.split(","), flags.errors == "all", flags.sample)))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        workspace = prepared(folder, flags.workspace)
        environment = ENVIRONMENT | {
            "LD_PRELOAD": str(library(folder)), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        code = subprocess.run(
            [sys.executable, "-m", "tests.faults", *sys.argv[1:]], cwd=workspace, env=environment
        ).returncode
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(code)


if __name__ == "__main__":
    main()

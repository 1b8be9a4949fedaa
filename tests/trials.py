"""What the long trials share (tests/faults.py, tests/disk.py, tests/places.py): a workspace in which everything has run, and stages
that run in it again and again, each in a fork of one process that has imported everything."""

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from pipeline.entry import read_entry
from tests.conftest import ROOT, STAGES, arguments, repro, run_stage, set_params
from tools.workspace import make_workspace

SCRATCH = Path(".dvc/tmp")
OUTS = "data", "models", "reports"  # where they lie


class Ended(NamedTuple):
    """How a forked stage ended."""

    code: int
    stderr: str
    answer: str  # what `after` returned; empty where the process was killed


def prepared(folder: Path, given: Path | None) -> Path:
    """A workspace in a folder: a copy of a given one in which everything has run, or a new one."""
    workspace = folder / "work"
    if given:
        shutil.copytree(given, workspace, ignore=shutil.ignore_patterns("cache", "tmp"))
    else:
        make_workspace(ROOT, workspace, ROOT / "presets/tiny")
        repro(workspace)
    set_params(workspace, runtime__progress=False, runtime__checkpoint_every=5)
    return workspace


def at_home(workspace: Path) -> None:
    """Let stages run in a workspace in this process and its forks."""
    from pipeline import run as runner
    from pipeline.machine import fingerprint

    os.chdir(workspace)
    os.environ["LFM_DEVICE"] = "cpu"
    runner.__file__ = str(workspace / "pipeline/run.py")
    fingerprint.START_NS = 2**63  # the workspace is younger than this process
    for stage in STAGES:
        import_module(arguments(stage)[1])


def fork(stage: str, log: Path, before: Callable[[], None] = lambda: None, after: Callable[[], str] = str) -> Ended:
    """Run a stage in a fork of this process, in the working directory.

    Args:
        log: where its stderr goes.
        before: called in the fork when the stage begins.
        after: called in the fork when the stage has ended, however it did.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 2)
            before()
            run_stage(stage)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            answer = after()
            sys.stderr.flush()
            os.write(write, answer.encode())
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(code, log.read_text(encoding="utf-8", errors="replace"), answer)


def forget(stage: str, workspace: Path = Path(), work: bool = True) -> None:
    """Remove a stage's outs and, with `work`, what it keeps in scratch."""
    for out in (workspace / path for path in read_entry(stage, workspace / "dvc.yaml").outs):
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    if work:
        shutil.rmtree(workspace / SCRATCH / "lfm" / stage, ignore_errors=True)


def half_written() -> list[str]:
    """Files that a stage has left beside its outs."""
    return [str(path) for folder in OUTS for path in Path(folder).rglob("*.part")]

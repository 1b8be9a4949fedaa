"""One round of torture: a stage that has to run, a signal at a chosen moment, and whether `dvc repro` then makes it good.

The workspace is a copy of one in which everything has run, and in which the chosen stage was then forgotten by DVC: its
entry in dvc.lock, its outs, their copies in the cache and its run cache. `pipeline/run.py` of the copy, on which no stage
depends because it can't change a result, writes a trace: a line for each step of a training and each part that is made.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from pipeline.entry import read_entry
from tests.conftest import ENVIRONMENT, arguments, heed_signals, set_params
from tools.mend import mend
from tools.workspace import outs

TARGETS = ("stage", "dvc", "group")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOMENTS = ("any time", "at work", "publishing", "dvc saves")
CHECKPOINT_EVERY = 4
PATIENCE_S, POLL_S = 900, 0.01
TRACE = """

def _trace() -> None:
    from pipeline.training.checkpoint import Checkpoints
    from pipeline.machine.scratch import Scratch

    def note(*words: object) -> None:
        with open("trace", "a") as file:
            file.write(" ".join(map(str, words)) + "\\n")

    keep, part = Checkpoints.keep, Scratch.part

    def noted_keep(self, state, done, steps):
        note(self.scratch.stage, self.name, done)
        keep(self, state, done, steps)

    def noted_part(self, name, make):
        def noted():
            made = make()
            note(self.stage, name)
            return made

        return part(self, name, noted)

    Checkpoints.keep, Scratch.part = noted_keep, noted_part


_trace()
"""


class Blow(NamedTuple):
    """What is done to a running `dvc repro`."""

    stage: str
    target: str
    signal: signal.Signals
    moment: str
    wait: float  # of 0 … 1: how far into that moment

    def __str__(self) -> str:
        return f"{self.signal.name} to {self.target} of {self.stage}, {self.moment} {self.wait:.3f}"


class Pace(NamedTuple):
    """Of one stage, undisturbed: what `moment` and `wait` are measured in."""

    seconds: float  # from `dvc repro` to its end, when only this stage runs
    units: int  # steps or parts that it traces


class Outcome(NamedTuple):
    """What became of a round."""

    twice: int  # steps, or parts, that were done a second time
    mended: list[str]  # records of DVC's that `make mend` had to remove before `dvc repro` could read them
    litter: list[str]  # half copies that DVC left, in nobody's way
    trouble: list[str]  # what was not as it must be; empty: recovered


class Reference(NamedTuple):
    """An undisturbed workspace: every out and what DVC recorded."""

    outs: dict[str, str]
    lock: dict[str, Any]
    files: set[str]  # all that lies beside the outs too


def recorded(workspace: Path) -> dict[str, Any]:
    """dvc.lock: of each stage its command, parameters, and md5 sums."""
    return dict(yaml.safe_load((workspace / "dvc.lock").read_text(encoding="utf-8"))["stages"])


def reference(workspace: Path) -> Reference:
    files = (f for folder in ("data", "models", "reports") for f in (workspace / folder).rglob("*") if f.is_file())
    return Reference(outs(workspace), recorded(workspace), {str(f.relative_to(workspace)) for f in files})


def traced(workspace: Path) -> Counter[tuple[str, ...]]:
    """How often each step and each part was made."""
    trace = workspace / "trace"
    return Counter(tuple(line.split()) for line in trace.read_text().splitlines()) if trace.exists() else Counter()


def prepare(undisturbed: Path, workspace: Path, stage: str) -> None:
    """Make `workspace` a copy of `undisturbed` in which one stage has to run again."""
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(undisturbed, workspace, symlinks=True)
    shutil.rmtree(workspace / ".dvc/tmp", ignore_errors=True)
    (workspace / "trace").unlink(missing_ok=True)
    set_params(workspace, runtime__checkpoint_every=CHECKPOINT_EVERY, runtime__progress=False)
    runner = workspace / "pipeline/run.py"
    if TRACE not in runner.read_text():
        runner.write_text(runner.read_text() + TRACE)
    forget(workspace, stage)


def forget(workspace: Path, stage: str) -> None:
    """Remove what DVC and the disk know of a stage's result."""
    lock = yaml.safe_load((workspace / "dvc.lock").read_text())
    entry = lock["stages"].pop(stage)
    (workspace / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    for run in sorted((workspace / ".dvc/cache/runs").rglob("*")):
        if run.is_file() and yaml.safe_load(run.read_text())["cmd"] == entry["cmd"]:
            shutil.rmtree(run.parent)  # an empty one is an error to DVC
    for out in entry["outs"]:
        path = workspace / out["path"]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in objects(workspace, entry) - set[str]().union(*(objects(workspace, e) for e in lock["stages"].values())):
        (workspace / ".dvc/cache/files/md5" / name).unlink(missing_ok=True)


def objects(workspace: Path, entry: dict[str, Any]) -> set[str]:
    """Names in DVC's cache of a stage's outs and of the files in them."""
    md5 = {out["md5"] for out in entry["outs"]}
    for folder in (workspace / f".dvc/cache/files/md5/{m[:2]}/{m[2:]}" for m in md5 if m.endswith(".dir")):
        md5 = md5 | {child["md5"] for child in json.loads(folder.read_text())}
    return {f"{m[:2]}/{m[2:]}" for m in md5}


def corrupt(workspace: Path) -> list[str]:
    """Objects of the cache whose name is not the md5 of their content."""
    paths = [path for path in (workspace / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    md5 = {path: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in paths}
    return [f"{p} is corrupt" for p in paths if md5[p] != (p.parent.name + p.name).removesuffix(".dir")]


def launch(workspace: Path) -> subprocess.Popen[str]:
    """`dvc repro`, leader of a process group of its own."""
    environment = ENVIRONMENT | {"DVC_SITE_CACHE_DIR": str(workspace / ".dvc/site")}
    with (workspace / "output").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"], cwd=workspace, env=environment, stdout=output, stderr=output,
            text=True, start_new_session=True, preexec_fn=heed_signals,
        )  # fmt: skip


def the_stage(dvc: int, stage: str) -> psutil.Process | None:
    """The process of a stage that dvc has started."""
    listed = Path(f"/proc/{dvc}/task/{dvc}/children")  # of Linux: cheaper than a look at all processes
    try:
        if listed.exists():
            children = [psutil.Process(int(child)) for child in listed.read_text(encoding="utf-8").split()]
        else:
            children = psutil.Process(dvc).children()
        return next((c for c in children if c.cmdline()[1:] == arguments(stage)), None)
    except (psutil.NoSuchProcess, OSError):
        return None


def working(workspace: Path, stage: str, dvc: int) -> bool:
    """Whether the stage's process has taken its lock, as it does when all is imported."""
    lock, process = workspace / f".dvc/tmp/lfm/{stage}/lock", the_stage(dvc, stage)
    return process is not None and lock.exists() and lock.read_text() == f"{process.pid}\n"


def _gone(process: psutil.Process) -> bool:
    """Also where it goes while one looks."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def begun(workspace: Path, blow: Blow, pace: Pace, dvc: subprocess.Popen[str]) -> Callable[[], bool]:
    """A question: has the moment of the blow begun?"""
    seen: list[psutil.Process] = []
    made = read_entry(blow.stage, workspace / "dvc.yaml").outs
    places = [path for out in made for path in (workspace / out, workspace / f"{out}.part")]
    before, left = traced(workspace).total(), {path for path in places if path.exists()}
    units = pace.units - before

    def at_work() -> bool:
        if units <= 0:
            return working(workspace, blow.stage, dvc.pid)
        return traced(workspace).total() - before >= 1 + int(blow.wait * units)

    def publishing() -> bool:
        return working(workspace, blow.stage, dvc.pid) if left else any(path.exists() for path in places)

    def saving() -> bool:
        seen.extend([process] if (process := the_stage(dvc.pid, blow.stage)) and not seen else [])
        return bool(seen) and _gone(seen[0])

    def running() -> bool:
        return blow.target != "stage" or the_stage(dvc.pid, blow.stage) is not None

    return {"any time": running, "at work": at_work, "publishing": publishing, "dvc saves": saving}[blow.moment]


def strike(workspace: Path, blow: Blow, pace: Pace) -> int:
    """Start `dvc repro`, deal the blow, and return the exit code; 0 also where the blow came too late."""
    dvc = launch(workspace)
    ready = begun(workspace, blow, pace, dvc)
    while dvc.poll() is None and not ready():
        time.sleep(POLL_S)
    most = {"any time": pace.seconds, "at work": 0.02 if pace.units else 1.0, "publishing": 0.05, "dvc saves": 1.0}
    deadline = time.monotonic() + blow.wait * most[blow.moment]
    while dvc.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    struck = False
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        process = the_stage(dvc.pid, blow.stage) if blow.target == "stage" else psutil.Process(dvc.pid)
        if process and dvc.poll() is None:
            os.killpg(dvc.pid, blow.signal) if blow.target == "group" else process.send_signal(blow.signal)
            struck = True
    code = dvc.wait(PATIENCE_S)
    return code if struck else 0


def repeat(workspace: Path) -> tuple[int, list[str]]:
    """A plain `dvc repro`, and where DVC can't read its own records another one after `make mend`. Returns the exit code and
    what was removed."""
    code = launch(workspace).wait(PATIENCE_S)
    removed = [str(path.relative_to(workspace)) for path in mend(workspace)] if code else []
    return launch(workspace).wait(PATIENCE_S) if removed else code, removed


def unlike(workspace: Path, wanted: Reference) -> list[str]:
    """What is not as in an undisturbed workspace."""
    now = reference(workspace)
    trouble = [f"{name} differs" for name, digest in wanted.outs.items() if now.outs.get(name) != digest]
    trouble += [f"dvc.lock differs in {name}" for name in wanted.lock if now.lock.get(name) != wanted.lock[name]]
    trouble += [f"{name} is left over" for name in sorted(now.files - wanted.files)]
    left = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(workspace)]
    _, alive = psutil.wait_procs(left, timeout=30)
    return trouble + corrupt(workspace) + [f"{process} still runs" for process in alive if not _gone(process)]


def torment(
    undisturbed: Path, workspace: Path, wanted: Reference, blows: list[Blow], paces: dict[str, Pace]
) -> tuple[list[int], Outcome]:
    """One round: blows one after the other at the same stage, then `dvc repro`. Returns each blow's exit code as well."""
    prepare(undisturbed, workspace, blows[0].stage)
    codes = [strike(workspace, blow, paces[blow.stage]) for blow in blows]
    code, mended = repeat(workspace)
    failure = f"`dvc repro` ended with {code}: {(workspace / 'output').read_text()[-2000:]}"
    twice = sum(count - 1 for count in traced(workspace).values())
    litter = [] if code else [str(path.relative_to(workspace)) for path in mend(workspace)]
    return codes, Outcome(twice, mended, litter, [failure] if code else unlike(workspace, wanted))


def drawn(draws: random.Random, stage: str, target: str, number: signal.Signals) -> Blow:
    """A blow at a moment that is drawn; what DVC saves, it saves when the stage's process is gone."""
    moments = MOMENTS[:-1] if target == "stage" else MOMENTS
    return Blow(stage, target, number, draws.choice(moments), draws.random())

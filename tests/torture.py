"""Ends `dvc repro` in every way at moments drawn at random, and sees whether it then makes everything as if undisturbed.

`make torture`, or: python -m tests.torture --kills 100 --seed 0 --jobs 1. Prints the tables of docs/robustness.md. A round that
did not recover stays in FOLDER/failed-N, and the exit code is 1. What was done is kept in FOLDER/rounds: `--go-on` continues.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml

from tests import kills
from tests.conftest import ROOT, repro
from tests.kills import CHECKPOINT_EVERY, MOMENTS, SIGNALS, TARGETS, Blow, Outcome, Pace, Reference
from tools.workspace import make_workspace

# On top of presets/tiny: several checkpoints, batches and parts a stage.
MORE = """
-S autoencoder.steps=60 -S classifier.steps=60 -S train.steps=60 -S encode.batch_size=10 -S sample.batch_size=20
-S likelihood.batch_size=5
"""
TRAININGS = ("autoencoder", "classifier", "train")
SECOND = 0.2  # of the rounds: a second blow, at the `dvc repro` that was to recover


class Round(NamedTuple):
    blows: list[Blow]
    codes: list[int]  # of each `dvc repro` that was dealt one; 0: it went on, or had ended before
    outcome: Outcome
    seconds: float

    @property
    def fatal(self) -> list[Blow]:
        return [blow for blow, code in zip(self.blows, self.codes, strict=True) if code]


def undisturbed(folder: Path) -> None:
    """FOLDER/undisturbed: a workspace in which everything has run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "preset").write_text((ROOT / "presets/tiny").read_text() + MORE)
    make_workspace(ROOT, folder / "undisturbed", folder / "preset")
    repro(folder / "undisturbed")


def paced(whole: Path, workspace: Path, wanted: Reference, stage: str) -> Pace:
    """Run one stage alone, as a round does, but undisturbed."""
    kills.prepare(whole, workspace, stage)
    began = time.monotonic()
    code, _ = kills.repeat(workspace)
    seconds = time.monotonic() - began
    if code or (trouble := kills.unlike(workspace, wanted)):
        sys.exit(f"{stage}, undisturbed: {f'exit code {code}' if code else '; '.join(trouble)}")
    return Pace(seconds, kills.traced(workspace).total())


def measured(folder: Path, stages: list[str], pool: ThreadPoolExecutor) -> dict[str, Pace]:
    """Of each stage: FOLDER/paces, made where it is not there."""
    path, whole = folder / "paces", folder / "undisturbed"
    if not path.exists():
        wanted = kills.reference(whole)
        paces = pool.map(lambda stage: paced(whole, folder / f"pace-{stage}", wanted, stage), stages)
        path.write_text(json.dumps(dict(zip(stages, paces, strict=True))))
    return {stage: Pace(*pace) for stage, pace in json.loads(path.read_text()).items()}


def plan(stages: list[str], seed: int) -> Iterator[list[Blow]]:
    """Rounds without end: every stage, target and signal in an order that is drawn, again and again."""
    draws = random.Random(seed)
    while True:
        every = list(itertools.product(stages, TARGETS, SIGNALS))
        draws.shuffle(every)
        for stage, target, number in every:
            first = kills.drawn(draws, stage, target, number)
            more = draws.random() < SECOND
            yield [first, *([kills.drawn(draws, stage, draws.choice(TARGETS), draws.choice(SIGNALS))] if more else [])]


def run(folder: Path, whole: Path, wanted: Reference, paces: dict[str, Pace], blows: list[Blow], number: int) -> Round:
    """One round, in this thread's workspace."""
    workspace = folder / f"work-{threading.current_thread().name.rpartition('_')[2]}"
    began = time.monotonic()
    codes, outcome = kills.torment(whole, workspace, wanted, blows, paces)
    most = sum(map(bool, codes)) * (CHECKPOINT_EVERY if blows[0].stage in TRAININGS else 1)
    if outcome.twice > most:
        outcome.trouble.append(f"{outcome.twice} steps or parts were done twice, more than {most}")
    if outcome.trouble:
        workspace.rename(folder / f"failed-{number}")
    result = "; ".join(outcome.trouble) or f"recovered, {outcome.twice} done twice"
    result += f", after `make mend` of {', '.join(outcome.mended)}" if outcome.mended else ""
    print(f"{number}. {', then '.join(map(str, blows))}: exit codes {codes}; {result}", flush=True)
    this = Round(blows, codes, outcome, time.monotonic() - began)
    with (folder / "rounds").open("a") as file:
        file.write(json.dumps([number, *this]) + "\n")
    return this


def earlier(folder: Path) -> dict[int, Round]:
    """The rounds of an earlier call, by number."""
    path = folder / "rounds"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return {
        number: Round(
            [Blow(s, t, signal.Signals(n), *more) for s, t, n, *more in blows], codes, Outcome(*outcome), seconds
        )
        for number, blows, codes, outcome, seconds in lines
    }


def table(title: str, groups: dict[str, list[Round]]) -> str:
    """Kills and what became of them, a group a row."""
    header = f"| {title} | kills | rounds | recovered | of these after `make mend` | done twice: most | mean |"
    lines = [header, "|---|---|---|---|---|---|---|"]
    for name, rounds in groups.items():
        good = [r for r in rounds if not r.outcome.trouble]
        mended = sum(bool(r.outcome.mended) for r in good)
        twice = [r.outcome.twice for r in rounds] or [0]
        deaths = sum(len(r.fatal) for r in rounds)
        counts = f"{deaths} | {len(rounds)} | {len(good)} | {mended} | {max(twice)} | {statistics.mean(twice):.1f}"
        lines.append(f"| {name} | {counts} |")
    return "\n".join(lines)


def report(done: list[Round], stages: list[str]) -> str:
    """Markdown."""
    rounds = [r for r in done if r.fatal]
    dealt, ignored = [blow for r in rounds for blow in r.fatal], sum(len(r.blows) - len(r.fatal) for r in done)
    by_blow = [
        f"| {target} | {' | '.join(str(sum(k.target == target and k.signal == s for k in dealt)) for s in SIGNALS)} |"
        for target in TARGETS
    ]
    by_moment = ", ".join(f"{sum(k.moment == m for k in dealt)} {m}" for m in MOMENTS)
    second, litter = sum(len(r.fatal) > 1 for r in rounds), sum(bool(r.outcome.litter) for r in rounds)
    minutes, machine = sum(r.seconds for r in done) / 60, f"{os.cpu_count()} cores, {platform.machine()}"
    return "\n".join([
        f"\n{datetime.date.today()}, {machine}, {minutes:.0f} minutes of rounds: {len(dealt)} kills in {len(rounds)} rounds "
        f"({by_moment}), {second} of them with a second kill, at the `dvc repro` that was to recover. In {litter} rounds DVC "
        f"left half a copy under a temporary name. {ignored} more signals ended nothing.\n",
        table("stage", {s: [r for r in rounds if r.blows[0].stage == s] for s in stages} | {"all": rounds}),
        f"\n| kills of | {' | '.join(s.name for s in SIGNALS)} |\n|---|---|---|---|",
        *by_blow,
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="rounds at the same time")
    parser.add_argument("--folder", type=Path, default=ROOT / "scratch/torture")
    parser.add_argument("--go-on", action="store_true", help="with the rounds that FOLDER holds")
    p = parser.parse_args()
    folder = p.folder.resolve()
    if not p.go_on:
        undisturbed(folder)
    whole = folder / "undisturbed"
    wanted, done = kills.reference(whole), earlier(folder)
    stages = list(yaml.safe_load((whole / "dvc.yaml").read_text())["stages"])
    with ThreadPoolExecutor(p.jobs) as pool:
        paces = measured(folder, stages, pool)
        waiting = ((n, blows) for n, blows in enumerate(plan(stages, p.seed), 1) if n not in done)
        while (missing := p.kills - sum(len(r.fatal) for r in done.values())) > 0:
            some = list(itertools.islice(waiting, min(missing, 10)))
            rounds = pool.map(lambda item: run(folder, whole, wanted, paces, item[1], item[0]), some)
            done |= zip((number for number, _ in some), rounds, strict=True)
    print(report(list(done.values()), stages))
    sys.exit(any(r.outcome.trouble for r in done.values()))


if __name__ == "__main__":
    main()

"""Ends `dvc repro` in every way at moments drawn at random, and checks that it then makes everything as if undisturbed.

`make torture`, or: python -m tests.torture --kills 100 --seed 0 --jobs 1. Prints the tables of docs/robustness.md. A round that
did not recover stays in FOLDER/failed-N, and the exit code is 1.
"""

import argparse
import datetime
import itertools
import os
import platform
import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests import kills
from tests.conftest import ROOT, STAGES, repro
from tests.kills import CHECKPOINT_EVERY, MOMENTS, SIGNALS, TARGETS, Blow, Outcome, Pace
from tools.workspace import make_workspace

# On top of presets/tiny: several checkpoints, batches and parts a stage.
MORE = """
-S autoencoder.steps=60 -S classifier.steps=60 -S second_classifier.steps=60 -S train.steps=60 -S distill.steps=60
-S encode.batch_size=100 -S sample.batch_size=100 -S likelihood.batch_size=5
"""
TRAININGS = ("autoencoder", "classifier", "second_classifier", "train", "distill")
SECOND = 0.2  # of the rounds: a second blow, at the `dvc repro` that was to recover


class Round(NamedTuple):
    blows: list[Blow]
    codes: list[int]  # of each `dvc repro` that was dealt one; 0: it went on, or had ended before
    outcome: Outcome
    seconds: float

    @property
    def fatal(self) -> list[Blow]:
        return [blow for blow, code in zip(self.blows, self.codes, strict=True) if code]


class Arena:
    """A folder with an undisturbed workspace, in which everything has run, and one for each thread."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.folder, self.whole = folder, folder / "undisturbed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "preset").write_text((ROOT / "presets/tiny").read_text() + MORE)
        make_workspace(ROOT, self.whole, folder / "preset")
        repro(self.whole)
        self.wanted = kills.reference(self.whole)
        self.paces = dict(zip(STAGES, pool.map(self.pace, STAGES), strict=True))

    @property
    def workspace(self) -> Path:
        return self.folder / f"work-{threading.current_thread().name.rpartition('_')[2]}"

    def pace(self, stage: str) -> Pace:
        """Run one stage alone, as a round does, but undisturbed."""
        kills.prepare(self.whole, self.workspace, stage)
        began = time.monotonic()
        code, _ = kills.repeat(self.workspace)
        seconds = time.monotonic() - began
        if code or (trouble := kills.unlike(self.workspace, self.wanted)):
            sys.exit(f"{stage}, undisturbed: {f'exit code {code}' if code else '; '.join(trouble)}")
        return Pace(seconds, kills.traced(self.workspace).total())

    def round(self, number: int, blows: list[Blow]) -> Round:
        began = time.monotonic()
        codes, outcome = kills.torment(self.whole, self.workspace, self.wanted, blows, self.paces)
        most = sum(map(bool, codes)) * (CHECKPOINT_EVERY if blows[0].stage in TRAININGS else 1)
        if outcome.twice > most:
            outcome.trouble.append(f"{outcome.twice} steps or parts were done twice, more than {most}")
        if outcome.trouble:
            self.workspace.rename(self.folder / f"failed-{number}")
        result = "; ".join(outcome.trouble) or f"recovered, {outcome.twice} done twice"
        result += f", after `make mend` of {', '.join(outcome.mended)}" if outcome.mended else ""
        print(f"{number}. {', then '.join(map(str, blows))}: exit codes {codes}; {result}", flush=True)
        return Round(blows, codes, outcome, time.monotonic() - began)


def plan(seed: int) -> Iterator[list[Blow]]:
    """Rounds without end: every stage, target and signal in an order that is drawn, again and again."""
    draws = random.Random(seed)
    while True:
        every = list(itertools.product(STAGES, TARGETS, SIGNALS))
        draws.shuffle(every)
        for stage, target, number in every:
            first = kills.drawn(draws, stage, target, number)
            more = draws.random() < SECOND
            yield [first, *([kills.drawn(draws, stage, draws.choice(TARGETS), draws.choice(SIGNALS))] if more else [])]


def table(groups: dict[str, list[Round]]) -> list[str]:
    """Kills and what became of them, a group a row."""
    lines = ["| stage | kills | rounds | recovered | of these after `make mend` | done twice: most | mean |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, rounds in groups.items():
        good = [r for r in rounds if not r.outcome.trouble]
        twice = [r.outcome.twice for r in rounds] or [0]
        counts = [sum(len(r.fatal) for r in rounds), len(rounds), len(good), sum(bool(r.outcome.mended) for r in good)]
        lines.append(f"| {' | '.join(map(str, [name, *counts, max(twice)]))} | {statistics.mean(twice):.1f} |")
    return lines


def report(done: list[Round]) -> str:
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
        *table({s: [r for r in rounds if r.blows[0].stage == s] for s in STAGES} | {"all": rounds}),
        f"\n| kills of | {' | '.join(s.name for s in SIGNALS)} |\n|---|---|---|---|",
        *by_blow,
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="rounds at the same time")
    parser.add_argument("--folder", type=Path, default=ROOT / "scratch/torture")
    p = parser.parse_args()
    with ThreadPoolExecutor(p.jobs) as pool:
        arena, rounds, done = Arena(p.folder.resolve(), pool), enumerate(plan(p.seed), 1), list[Round]()
        while (missing := p.kills - sum(len(r.fatal) for r in done)) > 0:
            done += pool.map(lambda item: arena.round(*item), itertools.islice(rounds, min(missing, 10)))
    print(report(done))
    sys.exit(any(r.outcome.trouble for r in done))


if __name__ == "__main__":
    main()

"""What `dvc repro` costs where nothing has changed, beside what starting Python and importing DVC cost alone.

After `dvc repro`: python -m benchmarks.repro_noop [--rounds 5]
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.measure import alternate, options, ratio, report

NOTHING = "`dvc repro`, nothing changed"
COMMANDS = {
    NOTHING: ["-m", "dvc", "repro"],
    "`import dvc.repo` in a new Python": ["-c", "import dvc.repo"],
    "a new Python": ["-c", "pass"],
}


def call(name: str) -> None:
    """One of `COMMANDS`; ends the benchmark where a stage had to run."""
    done = subprocess.run([sys.executable, *COMMANDS[name]], capture_output=True, text=True)
    if done.returncode or "Running stage" in done.stdout:
        sys.exit(f"{name}: {(done.stderr.strip() or 'a stage ran').splitlines()[-1]}; run `dvc repro` first")


def seconds_of(rounds: int) -> dict[str, np.ndarray]:
    """Of each command, (rounds,)."""
    contestants: dict[str, Callable[[], object]] = {name: partial(call, name) for name in COMMANDS}
    return alternate(contestants, rounds, torch.device("cpu"), warm=1)


def main() -> None:
    o = options(__doc__).parse_args()
    seconds = seconds_of(o.rounds)
    rows = [
        (name, f"{np.median(s):.2f}", f"{s.min():.2f}", f"{s.max():.2f}", f"{ratio(seconds[NOTHING], s):.1f}")
        for name, s in seconds.items()
    ]
    columns = ("command", "seconds, median", "least", "most", "`dvc repro` ÷ it")
    report("repro_noop", torch.device("cpu"), columns, rows, {"rounds": o.rounds, "seconds": seconds})


if __name__ == "__main__":
    main()

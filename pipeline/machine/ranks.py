"""Several processes for the work of one stage: `LFM_PROCESSES=4 dvc repro`. How many there are can't change a result."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

from pipeline.errors import UserError
from pipeline.machine.process import die_with, ending_by_signal

PROCESSES = "LFM_PROCESSES"


def processes() -> int:
    """`LFM_PROCESSES` if it is set, else 1. Each one works with as many threads as a single one would."""
    wanted = os.environ.get(PROCESSES) or "1"
    if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
        raise UserError(f"{PROCESSES} is '{wanted}'; it must be a number from 1 to 1024: one a GPU is a good choice")
    return int(wanted)


def run_all(work: Callable[..., None], one_line: Callable[[BaseException], str | None], *arguments: Any) -> None:
    """Run `work(rank, processes, *arguments)` in all processes, rank 0 in this one, and return when all have ended.

    Raises `UserError` where another one failed; they end with this one, however that ends. `one_line` is an error in one line, or
    None for a defect of ours.
    """
    n = processes()
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_other, args=(os.getpid(), work, one_line, rank, n, *arguments), daemon=True)
        for rank in range(1, n)
    ]
    try:
        for process in others:
            process.start()
        work(0, n, *arguments)
        for rank, process in enumerate(others, 1):
            process.join()
            if process.exitcode:
                raise UserError(f"process {rank} of {n} ended with exit code {process.exitcode}; run `dvc repro` again")
    finally:
        for process in others:
            if process.is_alive():
                process.terminate()


def _other(
    parent: int,
    work: Callable[..., None],
    one_line: Callable[[BaseException], str | None],
    rank: int,
    n: int,
    *arguments: Any,
) -> None:
    with ending_by_signal():
        die_with(parent)
        try:
            work(rank, n, *arguments)
        except Exception as error:
            line = one_line(error)
            if line is None or os.environ.get("LFM_DEBUG") == "1":
                raise
            print(f"error: process {rank} of {n}: {line}", file=sys.stderr)
            sys.exit(2)

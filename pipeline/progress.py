"""The log and the progress of a stage, both on stderr, and its curves while it runs: nothing here can change a result or end
a stage."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger("pipeline")
LINE_EVERY = 10.0  # seconds
LINE = "{desc}: {unit} {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"


class _Stderr:
    """sys.stderr as it is at each call. Once it is closed or full, what is written to it is dropped."""

    @property
    def encoding(self) -> str:
        """The bar is drawn in ASCII where this is no Unicode."""
        return getattr(sys.stderr, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            if sys.stderr is not None:
                sys.stderr.write(text)
                sys.stderr.flush()
        except (OSError, ValueError):
            _drop_stderr()
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""

    def isatty(self) -> bool:
        return bool(sys.stderr and not sys.stderr.closed and sys.stderr.isatty())

    def fileno(self) -> int:
        if sys.stderr is None:
            raise OSError("no stderr")
        return sys.stderr.fileno()


def _drop_stderr() -> None:
    """Let stderr lead to /dev/null, so that neither a later line nor the flush at exit fails."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stderr.fileno())
        os.close(null)


STDERR = _Stderr()


class _Handler(logging.Handler):
    """A log line above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=STDERR)


_handler = _Handler()
for _name in ("lfm", "pipeline"):  # the one place where logging is configured
    logging.getLogger(_name).addHandler(_handler)
    logging.getLogger(_name).setLevel(logging.INFO)


def say(line: str) -> None:
    """One line in the log."""
    log.info("%s", line)


class Progress:
    """How far a stage is, with rate and time left: a bar on a terminal, a line every ten seconds, and at the end, in a pipe or a
    file."""

    def __init__(self, total: int, what: str, unit: str, show: bool = True, done: int = 0) -> None:
        self._lines = show and not STDERR.isatty()
        self._done, self._said = done, (done, time.monotonic())  # and how many were done when the last line was written
        self._how: dict[str, Any] = {"total": total, "unit": unit, "unit_scale": total > 10_000}
        self._what = what
        self._bar = tqdm(desc=what, mininterval=0.2, disable=not show or self._lines, dynamic_ncols=True, initial=done,
                         file=STDERR, **self._how)  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def advance(self, n: int = 1, **figures: float) -> None:
        """Move on by n; `figures` stand behind it, but for those that are not known yet: nan."""
        known = {k: f"{v:.4g}" for k, v in figures.items() if not math.isnan(v)}
        if known:
            self._bar.set_postfix(known, refresh=False)
        self._bar.update(n)
        self._done += n
        done, said = self._said
        passed, ended = time.monotonic() - said, self._done == self._how["total"]
        if self._lines and (passed >= LINE_EVERY or ended):
            self._said, rate = (self._done, said + passed), (self._done - done) / max(passed, 1e-9)
            line = tqdm.format_meter(
                self._done, elapsed=passed, prefix=self._what, rate=rate, bar_format=LINE, **self._how
            )
            say(", ".join([" ".join(line.split()), *(f"{name} {value}" for name, value in known.items())]))


class Live:
    """A CSV file that grows while a stage runs, for `dvc plots show` and editors. It is no output, so nothing depends on it.

    Args:
        path: of the file, which begins anew; None for none.
        columns: its header.
        rows: the first ones.
    """

    def __init__(self, path: Path | None, columns: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
        self.path = path
        with suppress(OSError):
            if path is not None:
                path.parent.mkdir(exist_ok=True)
                path.write_text(",".join(columns) + "\n" + "".join(map(_line, rows)), encoding="utf-8")

    def add(self, row: Sequence[float]) -> None:
        """One more row."""
        with suppress(OSError):
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(row))


def _line(row: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row) + "\n"

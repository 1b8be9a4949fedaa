"""The log and the progress bars of a stage, both on stderr: nothing here can change a result or end a stage."""

import logging
import math
import os
import sys
from contextlib import suppress

from tqdm import tqdm

log = logging.getLogger("pipeline")


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
    """A progress bar with rate and time left: redrawn on a terminal, a line every ten seconds in a log file."""

    def __init__(self, total: int, what: str, unit: str, show: bool = True) -> None:
        interval = 0.2 if STDERR.isatty() else 10.0
        self._bar = tqdm(total=total, desc=what, unit=unit, mininterval=interval, disable=not show, dynamic_ncols=True,
                         unit_scale=total > 10_000, file=STDERR)  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def advance(self, n: int = 1, **figures: float) -> None:
        """Move on by n; `figures` stand behind the bar, but for those that are not known yet: nan."""
        if figures:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items() if not math.isnan(v)}, refresh=False)
        self._bar.update(n)

"""What a stage says while it works: nothing here can change a result."""

import math
import sys

from tqdm import tqdm


def say(line: str) -> None:
    """One line for the person who watches."""
    tqdm.write(line, file=sys.stderr)


class Progress:
    """A progress bar with rate and time left: redrawn on a terminal, a line every ten seconds in a log file."""

    def __init__(self, total: int, what: str, unit: str, show: bool = True) -> None:
        calm = 0.2 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(total=total, desc=what, unit=unit, mininterval=calm, disable=not show, dynamic_ncols=True,
                         unit_scale=total > 10_000)  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def advance(self, n: int = 1, **figures: float) -> None:
        """Move on by n; `figures` stand behind the bar, but for those that are not known yet: nan."""
        if figures:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items() if not math.isnan(v)}, refresh=False)
        self._bar.update(n)

"""How a stage runs: parameters, files, locks, progress. Nothing here changes a result but `artifacts` and `training`."""

import io
import os
import sys
import time
from importlib.util import find_spec

# Taken before anything slow is imported.
PARENT, START_NS = os.getppid(), time.time_ns()
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale's encoding, as Python does for stderr
if find_spec("torch") is None:
    print(f"error: {sys.executable} has no torch; run `make setup`, then `source .venv/bin/activate`", file=sys.stderr)
    sys.exit(2)


def import_torch() -> None:
    """End with one line where torch is there and can't be loaded; what imports it afterwards would show a traceback."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or "not enough memory"
        print(
            f"error: torch can't be loaded ({reason}); allow more memory (`ulimit -v`) or make .venv again",
            file=sys.stderr,
        )
        sys.exit(2)

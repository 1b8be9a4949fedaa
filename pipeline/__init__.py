"""How a stage runs: parameters, files, locks, progress. Nothing here changes a result but `artifacts` and `training`."""

import os
import sys
import time
from importlib.util import find_spec

# Taken before anything slow is imported.
PARENT, START_NS = os.getppid(), time.time_ns()
if find_spec("torch") is None:
    print(f"error: {sys.executable} has no torch; run `make setup`, then `source .venv/bin/activate`", file=sys.stderr)
    sys.exit(2)

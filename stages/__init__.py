"""One module is one DVC stage: python -m stages.NAME."""

import os
import sys
from importlib.util import find_spec

PARENT = os.getppid()  # before anything slow is imported
if find_spec("torch") is None:
    print(f"error: {sys.executable} has no torch; run `make setup`, then `source .venv/bin/activate`", file=sys.stderr)
    sys.exit(2)

"""How every stage starts and ends: parameters read, the machine made repeatable, errors told in one line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from lfm.errors import ConfigError
from pipeline.errors import UserError
from pipeline.files import PARAMS
from pipeline.params import Params, load_params
from pipeline.runtime import deterministic


def run(main: Callable[[Params], None]) -> None:
    """Call a stage's main. Exit code 2 for a user's mistake, 130 for Ctrl-C; `LFM_DEBUG=1` shows tracebacks."""
    try:
        root = Path(__file__).resolve().parent.parent
        if root != Path.cwd().resolve():
            raise UserError(f"{Path.cwd()}: stages run in the project's root; run `cd {root}` first")
        deterministic()
        main(load_params(PARAMS))
    except (UserError, ConfigError) as error:
        if os.environ.get("LFM_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing was published", file=sys.stderr)
        sys.exit(130)

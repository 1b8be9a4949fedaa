"""How every stage starts and ends: parameters read and checked again at the end, errors told in one line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from lfm.errors import ConfigError
from pipeline.errors import UserError
from pipeline.files import PARAMS
from pipeline.params import Params, load_params


def run(main: Callable[[Params], None], *sections: str) -> None:
    """Call a stage's main; `sections` are those of params.yaml that it uses.

    DVC reads params.yaml after a stage has ended and would record values edited meanwhile as the ones that were used: so
    a stage whose sections moved under it fails. Exit code 2 for a user's mistake, 130 for Ctrl-C; `LFM_DEBUG=1` shows
    tracebacks.
    """
    try:
        root = Path(__file__).resolve().parent.parent
        if root != Path.cwd().resolve():
            raise UserError(f"{Path.cwd()}: stages run in the project's root; run `cd {root}` first")
        params = load_params(PARAMS)
        main(params)
        now = load_params(PARAMS)
        moved = [name for name in sections if getattr(now, name) != getattr(params, name)]
        if moved:
            raise UserError(f"{PARAMS}: {moved[0]} was edited while this stage ran; run `dvc repro` again")
    except (UserError, ConfigError, OSError) as error:
        if os.environ.get("LFM_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

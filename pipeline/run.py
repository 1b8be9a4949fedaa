"""How every stage starts and ends: parameters read, nothing moved underneath, one process at a time, errors in one line."""

import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from lfm.errors import ConfigError
from pipeline.artifacts.files import PARAMS
from pipeline.errors import UserError
from pipeline.machine.fingerprint import Fingerprint, guarding
from pipeline.machine.process import alone, end_with_parent, ending_by_signal
from pipeline.params import Params, load_params
from stages import PARENT


def run(main: Callable[[Params], None], *sections: str, of: tuple[str, str] | None = None) -> None:
    """Call a stage's main; `sections` are those of params.yaml that it uses, none for what is no stage. `of` says where the
    stage stands, (file, name), if that is not dvc.yaml under the name of its module.

    Exit code 2 for a user's mistake, 128 + signal where one ended it; `LFM_DEBUG=1` shows tracebacks.
    """
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # RMSNorm in bf16, as autocast has it
    with ending_by_signal():
        try:
            root = Path(__file__).resolve().parent.parent
            if root != Path.cwd().resolve():
                raise UserError(f"{Path.cwd()}: stages run in the project's root; run `cd {root}` first")
            end_with_parent(PARENT)
            params = load_params(PARAMS)
            if sections:
                _run(main, params, sections, of)
            else:
                main(params)
        except Exception as error:
            line = told(error)
            if line is None or os.environ.get("LFM_DEBUG") == "1":
                raise
            print(f"error: {line}", file=sys.stderr)
            sys.exit(2)


def _run(main: Callable[[Params], None], params: Params, sections: tuple[str, ...], of: tuple[str, str] | None) -> None:
    name = Path(main.__code__.co_filename).stem
    file, stage = of or ("dvc.yaml", name)
    with alone(Path(".dvc/tmp/lfm") / name / "lock"):
        start = Fingerprint(stage, sections, params, file)
        with guarding(start):
            main(params)
        start.check()


def told(error: BaseException) -> str | None:
    """An error in one line; None for one that is a defect of ours."""
    if _no_space(error):
        return "no space left on the disk; free some and run `dvc repro` again: it goes on where it stopped"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        reason = " ".join(str(error).split())[:200]
        return f"not enough memory ({reason}); lower batch_size, or the model's width or depth, in params.yaml"
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        assert isinstance(error, OSError)
        return f"{error.filename or '.'}: {error.strerror}; make it writable and run `dvc repro` again"
    if isinstance(error, UserError | ConfigError | OSError):
        return " ".join(str(error).split()) if isinstance(error, OSError) else str(error)
    return None


def _no_space(error: BaseException | None) -> bool:
    """Also as told by HDF5 and safetensors, in words alone."""
    if error is None:
        return False
    words = "No space left on device" in str(error) or "StorageFull" in str(error)
    return words or getattr(error, "errno", None) == errno.ENOSPC or _no_space(error.__context__)

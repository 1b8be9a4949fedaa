"""How an output takes its place: whole, or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A temporary name that takes the place of `path` when the block ends well, and vanishes otherwise.

    Args:
        path: with a suffix a file, without one a folder, which is there to be filled.
        check: called before the move; raises where it must not happen.
    """
    part = path.with_name(path.name + ".part")
    _remove(part)
    (path.parent if path.suffix else part).mkdir(parents=True, exist_ok=True)
    try:
        yield part
        check()
        if not path.suffix:
            _remove(path)
        part.replace(path)
    except OSError as error:
        raise named(error, path) from error
    finally:
        _remove(part)


def named(error: OSError, path: Path) -> OSError:
    """What the system refused, with the name of the file where it has none: `write` and `flock` do not know it."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, os.fspath(path))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

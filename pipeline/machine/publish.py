"""How an output takes its place: whole, or not at all."""

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
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

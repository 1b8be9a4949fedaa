"""Where the project lies, and how paths that a user names are read."""

import os
from pathlib import Path


def dvc_root(project: Path = Path()) -> Path:
    """The nearest folder from the project upwards with a `.dvc`: the project's own, or one above it whose DVC repository holds
    it in a sub-folder."""
    here = project.resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def scratch_home(root: Path) -> Path:
    """Where a DVC repository keeps what this project's stages leave unfinished."""
    return Path(os.path.relpath(root)) / ".dvc/tmp/lfm" / Path.cwd().relative_to(dvc_root())


def started_in() -> Path:
    """The DVC repository in which DVC was started: another one than `dvc_root` in its temporary workspaces."""
    return Path(os.environ.get("DVC_ROOT") or dvc_root())


def user_path(place: str | Path) -> Path:
    """A path from params.yaml or the environment, in UTF-8 whatever the locale: relative ones begin in the project, the one
    where DVC was started."""
    named = Path(os.fsdecode(str(place).encode(errors="surrogateescape"))).expanduser()
    return Path(os.path.relpath(started_in())) / Path.cwd().relative_to(dvc_root()) / named


def user_folder(place: str) -> Path | None:
    """The folder that a user names, as `user_path`; None where there is none. Raises `PermissionError` where it can't be seen."""
    try:
        path = user_path(place)
        return path if path.is_dir() else None
    except PermissionError:
        raise
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL in it, the home of a user who does not exist
        return None

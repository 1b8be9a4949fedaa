"""How paths that a user names are read."""

import os
from pathlib import Path


def user_path(place: str | Path) -> Path:
    """A path from params.yaml or the environment: relative ones begin in the project where DVC was started, also in its
    temporary workspaces."""
    return Path(os.environ.get("DVC_ROOT", ".")) / Path(place).expanduser()


def user_folder(place: str) -> Path | None:
    """The folder that a user names, as `user_path`; None where there is none. Raises `PermissionError` where it can't be seen."""
    try:
        path = user_path(place)
        return path if path.is_dir() else None
    except PermissionError:
        raise
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL in it, the home of a user who does not exist
        return None

"""How paths that a user names are read."""

import os
from pathlib import Path


def user_path(place: str | Path) -> Path:
    """A path from params.yaml or the environment: relative ones begin in the project where DVC was started, also in its
    temporary workspaces."""
    return Path(os.environ.get("DVC_ROOT", ".")) / Path(place).expanduser()

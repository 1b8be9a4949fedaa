"""What tests share: the tiny pipeline, run once, and real MNIST where a mirror is given."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.workspace import make_workspace

ROOT = Path(__file__).resolve().parent.parent
# One thread: the tiny models are too small for two, and the figures don't depend on what else the machine does.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "LFM_"))} | {"OMP_NUM_THREADS": "1"}


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, its output as text."""
    return subprocess.run(words, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=540)


def repro(workspace: Path) -> str:
    """`dvc repro` that must succeed; returns what it printed."""
    result = command("dvc", "repro", cwd=workspace)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the whole pipeline has run with presets/tiny."""
    workspace = tmp_path_factory.mktemp("tiny")
    make_workspace(ROOT, workspace, ROOT / "presets/tiny")
    repro(workspace)
    return workspace


@pytest.fixture(scope="session")
def mirror() -> str:
    """Where the tests find real MNIST: the setting that a user has."""
    found = os.environ.get("LFM_MIRROR")
    if not found:
        pytest.skip("LFM_MIRROR is not set: tests on real MNIST need a directory or URL with its four files")
    return found

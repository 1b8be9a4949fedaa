"""`make setup` where uv, pip or Python are not as it would like them, and after it was killed. It has no packages to install."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, heed_signals

PROJECT = """
[project]
name = "empty"
version = "0"
[project.optional-dependencies]
export = []
[dependency-groups]
pipeline = []
test = []
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.hatch.build.targets.wheel]
packages = ["empty"]
"""
OLD_UV = (
    '#!/bin/sh\n[ "$3" = --help ] && exec echo usage: uv pip install\necho "error: unexpected argument" >&2; exit 2\n'
)
OLD_PYTHON = "#!/bin/sh\nexit 1\n"  # `sys.exit(sys.version_info < (3, 11))`


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project without dependencies, and `bin` with what `make setup` needs and one Python."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/__init__.py").touch()
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "requirements.lock").touch()
    (tmp_path / "bin").mkdir()
    for name in ("make", "bash", "sh", "test", "rm", "touch", "grep", "sed", "expand", "mkdir"):
        if found := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(found)
    # Not a link: a link to a venv's Python would be that venv's.
    script(tmp_path / "bin/python3", f'#!/bin/sh\nexec "{os.path.realpath(sys.executable)}" "$@"\n')
    return tmp_path


def script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """`make setup`, leader of a process group."""
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_", "HOME", "http", "HTTP", "SSL", "LANG"))}
    return subprocess.Popen(
        ["make", "setup"], cwd=folder, env=kept | {"PATH": str(folder / "bin")} | environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=heed_signals,
    )  # fmt: skip


def check(folder: Path, **environment: str) -> None:
    """It succeeds, and its Python has the project."""
    process = start(folder, **environment)
    output, _ = process.communicate(timeout=300)
    if process.returncode and ("Could not find a version" in output or "No solution found" in output):
        pytest.skip("no package index can be reached")
    assert process.returncode == 0, output
    subprocess.run([folder / ".venv/bin/python", "-c", "import empty"], check=True)
    assert (folder / ".venv/bin/activate").is_file() and not (folder / ".venv/.unfinished").exists()


def test_without_uv_and_with_pip_user_set(folder: Path) -> None:
    check(folder, PIP_USER="1")


def test_an_old_uv_is_replaced_within_the_environment(folder: Path) -> None:
    script(folder / "bin/uv", OLD_UV)
    check(folder)


def test_killed_at_five_moments_it_is_made_good_by_another_one(folder: Path) -> None:
    for seconds in (0.3, 1, 2, 3.5, 5):
        process = start(folder)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    check(folder)


def test_an_old_python_is_told(folder: Path) -> None:
    script(folder / "bin/python3", OLD_PYTHON)
    output, _ = start(folder).communicate(timeout=60)
    assert "error: no Python 3.11 or later on PATH; install one" in output and "Traceback" not in output

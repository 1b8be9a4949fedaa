"""The wheel, installed into an environment of its own: `import lfm` away from this folder, without a network."""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
SNIPPET = """from lfm import LatentFlow

model = LatentFlow.from_pretrained()
images = model.sample([3, 1, 4], n=8, seed=0).images
images[0].save("three.png")
"""
TYPED = "from lfm import LatentFlow; reveal_type(LatentFlow.from_pretrained().sample(3).nfe)"
UNREACHABLE = r"(?i)failed to (fetch|download)|error sending request|dns error|connection refused|timed out"
BLOCKER = """import socket

def refuse(*_):
    raise OSError("no network in this test")

socket.socket.connect = socket.socket.connect_ex = refuse
"""


def uv(*words: str, cwd: Path) -> None:
    """Run uv; where it can't reach the package registry, skip."""
    result = subprocess.run(["uv", *words], cwd=cwd, capture_output=True, text=True, timeout=540)
    if result.returncode and re.search(UNREACHABLE, result.stderr):
        pytest.skip(f"uv {words[0]}: the package registry can't be reached ({result.stderr.strip()[-300:]})")
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """The interpreter of a new environment that holds the wheel and what it depends on, hard-linked from uv's cache."""
    uv("venv", "--quiet", "--python", str(ROOT / ".venv/bin/python"), "env", cwd=wheel.parent)
    path = wheel.parent / "env/bin/python"
    uv(
        "pip",
        "install",
        "--quiet",
        "--python",
        str(path),
        str(wheel),
        "-c",
        str(ROOT / "requirements.lock"),
        cwd=wheel.parent,
    )
    return path


def test_the_wheel_holds_the_library_with_its_weights_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    files = {p for p in (ROOT / "lfm").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert names == {str(p.relative_to(ROOT)) for p in files}
    assert {"lfm/py.typed", "lfm/pretrained/mnist/autoencoder/config.json"} <= names
    assert wheel.stat().st_size < 20e6, "18 MB when this was written: weights of five networks, and 1.1 MB of digits"


def test_the_readme_runs_in_an_empty_folder_without_a_network(python: Path, tmp_path: Path) -> None:
    here, blocker = tmp_path / "here", tmp_path / "blocker"
    here.mkdir()
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(BLOCKER)
    separate = (
        shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    )
    words = [*(["unshare", "-rn"] if separate else []), str(python), "-c", "\n".join(BLOCKS or [SNIPPET])]
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    environment |= {} if separate else {"PYTHONPATH": str(blocker)}
    result = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=540)
    assert result.returncode == 0, result.stderr
    pictures = [path for path in here.iterdir() if path.suffix == ".png"]
    assert pictures and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_the_wheel_brings_the_command(python: Path, tmp_path: Path) -> None:
    words = [str(python.parent / "lfm"), "sample", "3", "--seed", "0", "-o", "three.png"]
    result = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=540)
    assert result.returncode == 0 and "seed 0" in result.stdout + result.stderr, result.stderr
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")


def test_mypy_reads_the_types_of_an_installed_lfm(python: Path, tmp_path: Path) -> None:
    """By `py.typed`; without it everything imported would be `Any`."""
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,diffusers.*,numpy.*,PIL.*]\nfollow_imports = skip\n")
    words = [str(ROOT / ".venv/bin/mypy"), "--python-executable", str(python), "--cache-dir", os.devnull, "-c", TYPED]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=540)
    assert re.search(r'Revealed type is "(builtins\.)?float"', result.stdout), result.stdout

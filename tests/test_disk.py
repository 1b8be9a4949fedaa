"""Disks that are full or read-only: one line, nothing published, and the stage continues when that is repaired."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.entry import read_entry
from tests.conftest import STAGES, command, run_stage
from tools.workspace import outs

FULL = ": no space left on device; free some, then run"


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Something else at the place of `folder`, for a while."""
    folder.mkdir(parents=True, exist_ok=True)
    if command("mount", *options, str(folder), cwd=Path("/")).returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        command("umount", "-l", str(folder), cwd=Path("/"))


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """A file beside the others that takes all that is left."""
    filler = folder / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize("stage", STAGES)
def test_on_a_full_disk_a_stage_publishes_nothing(
    workspace: Path, tmp_path: Path, error_of: Callable[[str], str], stage: str
) -> None:
    whole, made = outs(workspace), read_entry(stage).outs
    folder = made[0].parent
    shutil.copytree(folder, tmp_path / "beside")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) + (1 << 20)
    with mounted(workspace / folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        shutil.copytree(tmp_path / "beside", folder, dirs_exist_ok=True)
        for path in (path for path in made if path.parent == folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = sorted(folder.rglob("*"))
        with full(folder):
            assert FULL in error_of(stage)
        assert sorted(folder.rglob("*")) == before
        run_stage(stage)
        assert outs(workspace) == whole


def test_a_disk_that_fills_at_any_of_20_sizes_leaves_nothing(workspace: Path, error_of: Callable[[str], str]) -> None:
    whole, size = outs(workspace), Path("data/images.h5").stat().st_size
    with mounted(workspace / "data", "-t", "tmpfs", "tmpfs"):
        for most in range(size // 21, size // 21 * 20 + 1, size // 21):
            assert command("mount", "-o", f"remount,size={most}", "data", cwd=workspace).returncode == 0
            assert FULL in error_of("fetch")
            assert list(Path("data").iterdir()) == []
    run_stage("fetch")
    assert outs(workspace) == whole


@pytest.mark.parametrize("stage", ["fetch", "train", "evaluate"])
def test_with_a_full_scratch_folder_a_stage_publishes_nothing(
    workspace: Path, error_of: Callable[[str], str], stage: str
) -> None:
    whole = outs(workspace)
    with mounted(workspace / ".dvc/tmp", "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        with full(Path(".dvc/tmp")):
            assert FULL in error_of(stage)
            assert outs(workspace) == whole
        run_stage(stage)
    assert outs(workspace) == whole


@pytest.mark.parametrize(
    ("stage", "folder"), [("fetch", "data"), ("train", "models"), ("evaluate", "reports"), ("sample", ".dvc/tmp")]
)
def test_a_read_only_folder_is_named(workspace: Path, error_of: Callable[[str], str], stage: str, folder: str) -> None:
    whole = outs(workspace)
    with mounted(workspace / folder, "--bind", str(workspace / folder)):
        assert command("mount", "-o", "remount,ro,bind", str(workspace / folder), cwd=workspace).returncode == 0
        error = error_of(stage)
    assert error.startswith(f"{folder}/") and "read-only file system" in error
    assert outs(workspace) == whole
    run_stage(stage)
    assert outs(workspace) == whole

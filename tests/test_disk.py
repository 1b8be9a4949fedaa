"""The short form of `python -m tests.disk`, and disks that are read-only: one line, nothing published, and the stage continues
when that is repaired."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.entry import read_entry
from tests.conftest import STAGES, command, run_stage
from tests.disk import FULL, PAGE, ROOM, NoMount, limit, mounted, on_its_own_disk, used
from tests.trials import SCRATCH, forget
from tools.workspace import outs


@pytest.fixture(autouse=True)
def root(tmp_path: Path) -> None:
    try:
        with mounted(tmp_path, "-t", "tmpfs", "tmpfs"):
            pass
    except NoMount:
        pytest.skip("mounting needs root")


@pytest.mark.parametrize("stage", STAGES)
def test_on_a_full_disk_a_stage_publishes_nothing(workspace: Path, error_of: Callable[[str], str], stage: str) -> None:
    whole, folder = outs(workspace), read_entry(stage).outs[0].parent
    with on_its_own_disk(folder):
        forget(stage, work=False)
        before = sorted(folder.rglob("*"))
        limit(folder, max(1, used(folder)))
        assert FULL in error_of(stage)
        assert sorted(folder.rglob("*")) == before
        limit(folder, ROOM)
        run_stage(stage)
        assert outs(workspace) == whole


def test_a_disk_that_fills_at_any_of_20_sizes_leaves_nothing(workspace: Path, error_of: Callable[[str], str]) -> None:
    whole, pages = outs(workspace), Path("data/images.h5").stat().st_size // PAGE
    with mounted(workspace / "data", "-t", "tmpfs", "tmpfs"):
        for most in range(pages // 21, pages // 21 * 20 + 1, pages // 21):
            limit(Path("data"), most)
            assert FULL in error_of("fetch")
            assert list(Path("data").iterdir()) == []
    run_stage("fetch")
    assert outs(workspace) == whole


@pytest.mark.parametrize("stage", ["fetch", "train", "likelihood"])
def test_with_a_full_scratch_folder_a_stage_publishes_nothing(
    workspace: Path, error_of: Callable[[str], str], stage: str
) -> None:
    whole = outs(workspace)
    with on_its_own_disk(SCRATCH):
        (SCRATCH / "filler").write_bytes(bytes(1))
        limit(SCRATCH, 1)
        assert FULL in error_of(stage)
        assert outs(workspace) == whole
        limit(SCRATCH, ROOM)
        run_stage(stage)
    assert outs(workspace) == whole


@pytest.mark.parametrize(
    ("stage", "folder"), [("fetch", "data"), ("train", "models"), ("likelihood", "reports"), ("sample", ".dvc/tmp")]
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

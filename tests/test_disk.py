"""Disks that are full or read-only: told in one line, nothing published, and it goes on when that is mended."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from pipeline import run as cli
from pipeline.params import Params
from tests.conftest import command
from tests.test_pipeline import STAGES
from tools.workspace import outs

FULL = "no space left on the disk; free some and run `dvc repro` again: it goes on where it stopped"


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of this file's own in which everything has run; each test leaves it as it was."""
    target = tmp_path_factory.mktemp("disk") / "place"
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("cache", "tmp"))
    return target


@pytest.fixture
def workspace(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setattr(cli, "__file__", str(place / "stages/cli.py"))
    monkeypatch.setenv("LFM_DEVICE", "cpu")
    shutil.rmtree(place / ".dvc/tmp", ignore_errors=True)
    return place


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


def fill(path: Path) -> None:
    """Write to a file until the disk is full."""
    with pytest.raises(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def main_of(stage: str) -> Callable[[], None]:
    main: Callable[[Params], None] = import_module(f"stages.{stage}").main
    return lambda: cli.run(main, *STAGES[stage]["params"])


def refused(stage: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a stage that must end with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main_of(stage)()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and said.startswith("error: ")
    return said.removeprefix("error: ")


def made_by(stage: str) -> list[Path]:
    entry = STAGES[stage]
    return [Path(out) for out in [*entry["outs"], *(name for metric in entry.get("metrics", []) for name in metric)]]


def remove(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_told_and_nothing_published(
    workspace: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    whole, folder, beside = outs(workspace), made_by(stage)[0].parent, workspace / "beside"
    shutil.copytree(folder, beside)
    size = sum(f.stat().st_size for f in beside.rglob("*") if f.is_file()) + (1 << 20)
    try:
        with mounted(workspace / folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
            shutil.copytree(beside, folder, dirs_exist_ok=True)
            remove(made_by(stage))
            there = sorted(folder.rglob("*"))
            fill(filled := folder / "filled")
            assert refused(stage, capsys) == FULL
            filled.unlink()
            assert sorted(folder.rglob("*")) == there
            main_of(stage)()
            assert outs(workspace) == whole
    finally:
        shutil.rmtree(beside)


@pytest.mark.parametrize("stage", ["fetch", "train", "evaluate"])
def test_a_full_scratch_folder_is_told_and_nothing_published(
    workspace: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    whole = outs(workspace)
    with mounted(workspace / ".dvc/tmp", "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        fill(filled := Path(".dvc/tmp/filled"))
        assert refused(stage, capsys) == FULL
        assert outs(workspace) == whole
        filled.unlink()
        main_of(stage)()
    assert outs(workspace) == whole


@pytest.mark.parametrize(
    ("stage", "folder", "name"),
    [
        ("fetch", "data", "data/images.h5.part"),
        ("train", "models", "models/flow.part"),
        ("evaluate", "reports", "reports/metrics.json.part"),
        ("sample", ".dvc/tmp", ".dvc/tmp/lfm"),
    ],
)
def test_a_read_only_folder_is_told(
    workspace: Path, capsys: pytest.CaptureFixture[str], stage: str, folder: str, name: str
) -> None:
    whole = outs(workspace)
    with mounted(workspace / folder, "--bind", str(workspace / folder)):
        assert command("mount", "-o", "remount,ro,bind", str(workspace / folder), cwd=workspace).returncode == 0
        assert refused(stage, capsys) == f"{name}: Read-only file system; make it writable and run `dvc repro` again"
    assert outs(workspace) == whole
    main_of(stage)()
    assert outs(workspace) == whole

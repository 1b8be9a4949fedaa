"""What `make demo` runs, the training left out."""

import json
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline.errors import UserError
from tests.conftest import ROOT, STAGES
from tools import demo


def test_a_killed_demo_mends_its_own_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    workspace = tmp_path / "demo"
    demo.prepare(workspace)
    assert capsys.readouterr().err == ""
    (workspace / "dvc.lock").touch()  # as a killed dvc leaves it
    (workspace / ".dvc/tmp").mkdir(exist_ok=True)
    (workspace / ".dvc/tmp/rwlock").write_text('{"')
    (workspace / "lfm/model.py").unlink()
    demo.prepare(workspace)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(workspace / f) for f in ("dvc.lock", ".dvc/tmp/rwlock")]
    with Repo(str(workspace)) as repo:
        assert len(repo.status()) == len(STAGES)


def test_a_demo_at_work_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo, "at_work", lambda project: [1234] if project == tmp_path / "demo" else [])
    with pytest.raises(UserError, match="1234"):
        demo.prepare(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_the_last_lines_say_what_was_made_how_good_it_is_and_what_to_do_next(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    figures = {"accuracy_generated": 98.72, "accuracy_test": 99.5, "fd_generated": 0.314, "fd_validation": 0.127}
    (tmp_path / "reports/metrics.json").write_text(json.dumps(figures))
    text = demo.summary(tmp_path, 83.4)
    assert len(text.splitlines()) <= 12
    for words in (
        "Done in 83 s",
        "98.7 %",
        "(real ones:\n99.5 %)",
        "0.31;",
        "at 0.13",
        f"-m {tmp_path}/models/latent_flow",
        "make repro",
    ):
        assert words in text

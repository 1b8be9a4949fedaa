"""The whole pipeline under DVC: what reruns, that reruns give the same bytes, and a stage twice with other inputs."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from safetensors.torch import load_file, save_file

from lfm.nets.autoencoder import FILES
from lfm.nets.weights import digest
from pipeline.params import load_yaml
from tests.conftest import ROOT, STAGES, command, edited, ran, repro, set_params
from tools.workspace import make_workspace, outs


@contextmanager
def changed(workspace: Path, **leaves: Any) -> Iterator[None]:
    """params.yaml with leaves changed, named section__leaf, for a while."""
    with edited(workspace / "params.yaml"):
        set_params(workspace, **leaves)
        yield


def test_two_runs_from_scratch_give_the_same_bytes(twins: tuple[Path, Path]) -> None:
    first, second = (outs(workspace) for workspace in twins)
    assert len(first) > 20
    assert first == second


def test_nothing_changed_runs_nothing(changeable: Path) -> None:
    assert repro(changeable) == []


@pytest.mark.parametrize(
    ("leaves", "stages"),
    [
        ({"classifier__seed": 1}, {"classifier", "evaluate", "report"}),
        ({"flow__sigma_min": 0.1}, {"train", "distill", "sample", "likelihood", "evaluate", "report"}),
        ({"evaluate__neighbours": 3}, {"evaluate", "report"}),
        ({"report__zoom": 1}, {"report"}),
        ({"runtime__progress": False}, set()),
    ],
    ids=["classifier", "flow", "evaluate", "report", "runtime"],
)
def test_a_change_runs_what_it_touches_and_going_back_runs_nothing(
    changeable: Path, leaves: dict[str, Any], stages: set[str]
) -> None:
    before = outs(changeable)
    with changed(changeable, **leaves):
        assert set(repro(changeable)) == stages
    assert (outs(changeable) != before) == bool(stages)
    assert repro(changeable) == []
    assert outs(changeable) == before


def test_a_change_that_gives_the_same_bytes_stops_there(changeable: Path) -> None:
    with changed(changeable, autoencoder__revision="unused by source: train"):
        # The record changes and no weight does: encode and sample run, make what they made before; the page shows it.
        assert sorted(repro(changeable)) == ["autoencoder", "encode", "report", "sample"]
    assert repro(changeable) == []


def test_another_autoencoder_reruns_what_rests_on_it_and_going_back_runs_nothing(
    changeable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory with other weights: `autoencoder` and `encode`, then what reads one of their outs and nothing else."""
    monkeypatch.chdir(changeable)
    before = outs(changeable)
    for name in FILES:
        shutil.copyfile(changeable / "models/autoencoder" / name, tmp_path / name)
    weights = next(tmp_path.glob("*.safetensors"))
    save_file({name: 1.1 * value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with changed(changeable, autoencoder__source=str(tmp_path), autoencoder__revision=digest(tmp_path, FILES)):
        assert repro(changeable, "encode") == ["autoencoder", "encode"]
        assert repro(changeable, "encode") == []
        with Repo(str(changeable)) as repo:
            assert set(repo.status()) == {"train", "distill", "sample", "likelihood", "report"}, (
                "the page shows the parameters"
            )
    assert outs(changeable) != before
    assert repro(changeable) == [] and outs(changeable) == before


def test_a_stage_runs_twice_with_other_inputs_outs_and_parameters(tiny: Path, tmp_path: Path) -> None:
    work, other = tmp_path / "work", tmp_path / "work/second.yaml"
    shutil.copytree(tiny, work)
    shutil.copytree(tiny / "data", work / "data/second", ignore=shutil.ignore_patterns("images.h5", "samples.h5"))
    pipeline, first = load_yaml((work / "dvc.yaml").read_text()), outs(work)
    stage = pipeline["stages"]["train"]
    pipeline["stages"]["second"] = stage | {
        "cmd": "exec python -m stages.train second",
        "params": [{"second.yaml": stage["params"]}],
        "deps": [dep.replace("data/latents.h5", "data/second/latents.h5") for dep in stage["deps"]],
        "outs": ["models/second/flow"],
    }
    (work / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    tree = {name: load_yaml((work / "params.yaml").read_text())[name] for name in stage["params"]}

    def second(**train: Any) -> bytes:
        other.write_text(yaml.safe_dump(tree | {"train": tree["train"] | train}))
        assert repro(work) == ["second"]
        assert {name: outs(work)[name] for name in first} == first
        return (work / "models/second/flow/model.safetensors").read_bytes()

    same = second()
    assert same == (tiny / "models/flow/model.safetensors").read_bytes() != second(seed=1)

    other.write_text(yaml.safe_dump({name: tree[name] for name in ("model", "flow")}))
    result = command("python", "-m", "stages.train", "second", cwd=work)
    assert result.returncode == 2 and result.stderr.startswith("error: second.yaml: ") and "train" in result.stderr
    assert result.stderr.count("\n") == 1


def test_every_preset_is_valid_and_every_out_is_ignored_by_git(tmp_path: Path) -> None:
    for preset in sorted((ROOT / "presets").iterdir()):
        make_workspace(ROOT, tmp_path / preset.name, preset)
    made = [out for stage in STAGES.values() for out in stage["outs"]]
    assert command("git", "check-ignore", *made, cwd=ROOT).stdout.split() == made


def test_metrics_are_few_flat_and_finite(tiny: Path) -> None:
    metrics = json.loads((tiny / "reports/metrics.json").read_text())
    assert all(isinstance(value, int | float) for value in metrics.values())
    # Five midpoint steps, ten evaluations; guidance acts at t = 0.4 to 0.7, autoguidance at 0 to 0.5,
    # each a pass more.
    assert metrics["nfe"] == 10 + 4 + 6 and metrics["fd_validation"] > 0
    assert 0 < metrics["psnr"] < 100 and 0 <= metrics["accuracy_generated"] <= 100


def test_a_stage_runs_without_dvc_and_leaves_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns(".dvc"))
    (copy / "data/samples.h5").unlink()
    result = command("python", "-m", "stages.sample", cwd=copy)
    assert result.returncode == 0, result.stderr
    assert outs(copy) == outs(tiny)
    assert not list(copy.rglob("*.part"))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["stages.evaluate"], "params.yaml: evaluate.neighbours is 0"),
        (["stages.evaluate", "other"], "dvc.yaml: has no stage 'other'"),
        (["stages.evaluate", "one", "two"], "one two"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(changeable: Path, words: list[str], key: str) -> None:
    with changed(changeable, evaluate__neighbours=0):
        result = command("python", "-m", *words, cwd=changeable)
        debugged = command("python", "-m", *words, cwd=changeable, LFM_DEBUG="1")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: {key}")
    assert "Traceback" in debugged.stderr


def test_a_stage_that_runs_elsewhere_than_its_code_is_refused(changeable: Path, tmp_path: Path) -> None:
    result = command("python", "-m", "stages.evaluate", cwd=tmp_path, PYTHONPATH=str(changeable))
    assert result.returncode == 2 and result.stderr.startswith(f"error: {tmp_path}: ")


def test_parameters_edited_during_a_run_are_not_recorded(changeable: Path) -> None:
    main, before = "def main(context: Context) -> None:\n", outs(changeable)
    edit = "    from pathlib import Path\n    params = Path('params.yaml')\n"
    edit += "    params.write_text(params.read_text().replace('neighbours: 5', 'neighbours: 4'))\n"
    code = changeable / "stages/evaluate.py"
    with edited(changeable / "params.yaml"), edited(code, code.read_text().replace(main, main + edit)):
        result = command("dvc", "repro", "evaluate", cwd=changeable)
    assert result.returncode == 255 and ran(result.stdout) == ["evaluate"]
    assert "error: params.yaml: evaluate was edited while this stage ran" in result.stderr
    assert repro(changeable) == [] and outs(changeable) == before

"""Caching that is right: what a stage depends on, what a change reruns, and that reruns give the same bytes."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from dvc.repo import Repo
from safetensors.torch import load_file, save_file

from pipeline.artifacts.files import sha256_of
from pipeline.params import Loader
from tests.conftest import ROOT, command, repro
from tools.workspace import make_workspace, outs

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, Any] = DVC["stages"]
PARAMS: dict[str, dict[str, Any]] = yaml.load((ROOT / "params.yaml").read_text(), Loader)
GRAPH = grimp.build_graph("lfm", "pipeline", "stages", cache_dir=None)

# Modules that can't change a result, so a stage need not list them.
EXEMPT = {
    "lfm.errors": "an exception class",
    "pipeline.errors": "an exception class",
    "pipeline.machine.process": "signals, lock files and the parent's death: how a process ends",
    "pipeline.params": "only validates and never transforms: the values are tracked by `params:`",
    "pipeline.progress": "log lines and progress bars",
    "pipeline.run": "starts a stage and prints its errors",
}

# Which stages a changed section of params.yaml reruns; what they make then decides about the others.
TRACKED_BY = {
    "data": {"fetch"},
    "autoencoder": {"autoencoder"},
    "classifier": {"classifier"},
    "encode": {"encode"},
    "model": {"train"},
    "flow": {"train"},
    "train": {"train"},
    "sample": {"sample"},
    "likelihood": {"likelihood"},
    "evaluate": {"evaluate"},
    "report": set[str](),
}
TRACKED_BY = {section: stages | {"report"} for section, stages in TRACKED_BY.items()} | {
    "runtime": set()
}  # it shows all
LEAVES = [(section, leaf) for section, leaves in PARAMS.items() for leaf in leaves]


def modules(stage: str) -> set[str]:
    """The project's modules that a stage imports, itself and what they import in turn included."""
    found = GRAPH.find_upstream_modules(f"stages.{stage}") | {f"stages.{stage}"}
    return {m for m in found if not (ROOT / m.replace(".", "/")).is_dir()} - set(EXEMPT)


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_exactly_what_a_stage_imports(stage: str) -> None:
    listed = {dep.removesuffix(".py").replace("/", ".") for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert listed == modules(stage)


def test_the_two_libraries_do_not_know_each_other_or_the_stages() -> None:
    for ours, others in {"lfm": ("pipeline", "stages"), "pipeline": ("lfm", "stages")}.items():
        for other in others:
            assert not GRAPH.find_shortest_chains(ours, other), f"{ours} imports {other}"


def test_packages_hold_a_docstring_and_no_project_imports() -> None:
    for package in ("lfm", "pipeline", "stages"):
        source = (ROOT / package / "__init__.py").read_text()
        assert source.startswith('"""') and not re.search(r"\b(from|import) (lfm|pipeline|stages)\b", source)


def test_exemptions_are_used() -> None:
    imported = set[str]().union(*(GRAPH.find_upstream_modules(f"stages.{stage}") for stage in STAGES))
    assert set(EXEMPT) <= imported


@contextmanager
def changed(workspace: Path, section: str, leaf: str, value: Any) -> Iterator[None]:
    """params.yaml with one leaf changed, for a while."""
    path = workspace / "params.yaml"
    before = path.read_text()
    tree = yaml.load(before, Loader)
    tree[section][leaf] = value
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.parametrize(("section", "leaf"), LEAVES, ids=[f"{s}.{k}" for s, k in LEAVES])
def test_a_changed_parameter_reruns_the_stages_that_track_it(
    changeable: Path, monkeypatch: pytest.MonkeyPatch, section: str, leaf: str
) -> None:
    monkeypatch.chdir(changeable)
    with changed(changeable, section, leaf, "something else"), Repo(str(changeable)) as repo:
        status = repo.status()
    assert set(status) == TRACKED_BY[section]
    for changes in status.values():
        assert changes == [{"changed deps": {"params.yaml": {f"{section}.{leaf}": "modified"}}}] or changes == [
            {"changed deps": {"params.yaml": {section: "modified"}}}
        ]


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


def test_nothing_changed_runs_nothing(changeable: Path) -> None:
    assert ran(repro(changeable)) == []


@pytest.mark.parametrize(
    ("section", "leaf", "value", "expected"),
    [
        ("data", "seed", 1, set(STAGES)),
        ("classifier", "seed", 1, {"classifier", "evaluate", "report"}),
        ("flow", "sigma_min", 0.1, {"train", "sample", "likelihood", "evaluate", "report"}),
        ("evaluate", "neighbours", 3, {"evaluate", "report"}),
        ("report", "zoom", 1, {"report"}),
        ("runtime", "progress", False, set()),
    ],
    ids=["data", "classifier", "flow", "evaluate", "report", "runtime"],
)
def test_a_change_runs_what_it_touches_and_going_back_runs_nothing(
    changeable: Path, section: str, leaf: str, value: Any, expected: set[str]
) -> None:
    before = outs(changeable)
    with changed(changeable, section, leaf, value):
        assert set(ran(repro(changeable))) == expected
    assert (outs(changeable) != before) == bool(expected)
    assert ran(repro(changeable)) == []
    assert outs(changeable) == before


def test_stages_check_the_sections_that_dvc_tracks() -> None:
    for name, stage in STAGES.items():
        sections = ",".join(f'"{section}"' for section in stage["params"])
        source = re.sub(r"\s", "", (ROOT / f"stages/{name}.py").read_text())
        assert source.replace(",)", ")").endswith(f"run(main,{sections})")


def test_a_change_that_gives_the_same_bytes_stops_there(changeable: Path) -> None:
    with changed(changeable, "autoencoder", "revision", "unused by source: train"):
        # The record changes and no weight does: encode and sample run, make what they made before; the page shows it.
        assert sorted(ran(repro(changeable))) == ["autoencoder", "encode", "report", "sample"]
    assert ran(repro(changeable)) == []


def test_another_autoencoder_reruns_what_rests_on_it_and_going_back_runs_nothing(
    changeable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory with other weights: `autoencoder` and `encode`, then what reads one of their outs and nothing else."""
    monkeypatch.chdir(changeable)
    before, files = outs(changeable), ("config.json", "diffusion_pytorch_model.safetensors")
    for name in files:
        shutil.copyfile(changeable / "models/autoencoder" / name, tmp_path / name)
    weights = load_file(tmp_path / files[1])
    save_file({name: 1.1 * value for name, value in weights.items()}, tmp_path / files[1], {"format": "pt"})
    with (
        changed(changeable, "autoencoder", "source", str(tmp_path)),
        changed(changeable, "autoencoder", "revision", sha256_of(tmp_path, files)),
    ):
        result = command("dvc", "repro", "encode", cwd=changeable)
        assert ran(result.stdout) == ["autoencoder", "encode"], result.stderr
        assert ran(command("dvc", "repro", "encode", cwd=changeable).stdout) == []
        with Repo(str(changeable)) as repo:
            waiting = repo.status()
    assert set(waiting) == {"train", "sample", "likelihood", "report"}, "the page shows the parameters"
    assert outs(changeable) != before
    assert ran(repro(changeable)) == [] and outs(changeable) == before


def test_two_runs_from_scratch_give_the_same_bytes(twins: tuple[Path, Path]) -> None:
    first, second = (outs(workspace) for workspace in twins)
    assert len(first) > 20
    assert first == second


def test_every_preset_is_valid_and_every_out_is_ignored_by_git(tmp_path: Path) -> None:
    for preset in sorted((ROOT / "presets").iterdir()):
        make_workspace(ROOT, tmp_path / preset.name, preset)
    for stage in STAGES.values():
        for out in stage["outs"]:
            folder, _, name = out.partition("/")
            assert f"/{name}" in (ROOT / folder / ".gitignore").read_text().split()


def test_metrics_are_few_flat_and_finite(changeable: Path) -> None:
    metrics = json.loads((changeable / "reports/metrics.json").read_text())
    assert all(isinstance(value, int | float) for value in metrics.values())
    # Five midpoint steps, ten evaluations; guidance acts at t = 0.4, 0.5, 0.6 and 0.7, each a pass more.
    assert metrics["nfe"] == 14 and metrics["fd_validation"] > 0
    assert 0 < metrics["psnr"] < 100 and 0 <= metrics["accuracy_generated"] <= 100


def test_a_stage_runs_without_dvc_and_leaves_the_same_bytes(changeable: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(changeable, copy, ignore=shutil.ignore_patterns(".dvc"))
    (copy / "data/samples.h5").unlink()
    result = command("python", "-m", "stages.sample", cwd=copy)
    assert result.returncode == 0, result.stderr
    assert outs(copy) == outs(changeable)
    assert not list(copy.rglob("*.part"))


def test_a_users_mistake_is_one_line_and_exit_code_2(changeable: Path) -> None:
    params = changeable / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("neighbours: 5", "neighbours: 0"))
    try:
        result = command("python", "-m", "stages.evaluate", cwd=changeable)
        traced = command("python", "-m", "stages.evaluate", cwd=changeable, LFM_DEBUG="1")
    finally:
        params.write_text(before)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: params.yaml: evaluate.neighbours is 0; it must be at least 1\n"
    assert "Traceback" in traced.stderr


def test_parameters_edited_during_a_run_are_not_recorded(changeable: Path) -> None:
    params, stage = changeable / "params.yaml", changeable / "stages/evaluate.py"
    before, code = params.read_text(), stage.read_text()
    edit = "\n    PARAMS = __import__('pathlib').Path('params.yaml')\n"
    edit += "    PARAMS.write_text(PARAMS.read_text().replace('neighbours: 5', 'neighbours: 4'))\n"
    try:
        stage.write_text(code.replace("def main(p: Params) -> None:\n", "def main(p: Params) -> None:" + edit))
        result = command("python", "-m", "stages.evaluate", cwd=changeable)
    finally:
        params.write_text(before)
        stage.write_text(code)
    assert result.returncode == 2
    assert result.stderr.endswith(
        "error: params.yaml: evaluate was edited while this stage ran; run `dvc repro` again\n"
    )
    repro(changeable)

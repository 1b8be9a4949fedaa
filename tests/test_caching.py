"""A room is a cache key: which stages rerun when a module or a parameter changes, and that nothing else does.

The table is what we promise. It is checked against dvc.yaml, dvc.yaml against the imports, and DVC against the table.
"""

import ast
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from dvc.repo import Repo

from pipeline.params import load_yaml
from tests.conftest import ROOT, STAGES, arguments, edited

SWEEPS: dict[str, Any] = {
    name: stage.get("do", stage)
    for name, stage in yaml.safe_load((ROOT / "sweeps/dvc.yaml").read_text())["stages"].items()
}
POINTS = {"cost", "guidance"}
PACKAGES = ("lfm", "pipeline", "stages", "sweeps", "tools")
TRAININGS = {"autoencoder", "encode", "classifier", "second_classifier", "train"}  # and what takes as long

# Stages of dvc.yaml | stages of sweeps/dvc.yaml. The row of a room is that of all its modules without a row of their own.
ALL = "fetch autoencoder encode classifier second_classifier train distill sample likelihood evaluate report"
TABLE = {
    "lfm.random": "fetch autoencoder encode classifier second_classifier train distill sample likelihood evaluate | points",
    "lfm.precision": "autoencoder encode classifier second_classifier train distill sample likelihood evaluate | points",
    "lfm.decoder": "fetch",
    "lfm.folder": "fetch",
    "lfm.model": "sample likelihood | points",
    "lfm.psnr": "autoencoder evaluate",
    "lfm.sample_data": "fetch",
    "lfm.nets": " | points",
    "lfm.nets.augment": "autoencoder classifier second_classifier | points",
    "lfm.nets.autoencoder": "autoencoder encode sample likelihood | points",
    "lfm.nets.classifier": "classifier second_classifier evaluate | points",
    "lfm.nets.flow_map": "distill sample likelihood | points",
    "lfm.nets.latents": "autoencoder encode train distill sample likelihood | points",
    "lfm.nets.transformer": "train distill sample likelihood | points",
    "lfm.nets.weights": "autoencoder encode classifier second_classifier train distill sample likelihood evaluate | points",
    "lfm.flow": "train",
    "lfm.flow.ema": "train distill",
    "lfm.flow.path": "train distill sample likelihood | points",
    "lfm.flow.schedule": "autoencoder classifier second_classifier train distill",
    "lfm.sampling": "sample likelihood | points",
    "lfm.sampling.guidance": "distill sample likelihood | points",
    "lfm.sampling.solver": "distill sample likelihood | points",
    "lfm.evaluation": "evaluate",
    "lfm.evaluation.metrics": "evaluate report | points",
    "lfm.evaluation.neighbours": "evaluate report | points",
    "lfm.evaluation.verdict": "evaluate report",
    "pipeline.artifacts": "",
    "pipeline.artifacts.bundled": "autoencoder classifier second_classifier",
    "pipeline.artifacts.files": "autoencoder classifier second_classifier train distill sample likelihood evaluate report"
    " | points report",
    "pipeline.artifacts.flow": "distill sample",
    "pipeline.artifacts.hdf5": f"{ALL} | points",
    "pipeline.artifacts.images": "fetch autoencoder encode classifier second_classifier evaluate report | points",
    "pipeline.artifacts.latents": "encode train distill sample likelihood",
    "pipeline.artifacts.samples": "sample evaluate report",
    "pipeline.artifacts.snapshots": "train sample",
    "pipeline.hub": "autoencoder",
    "pipeline.page": "report | report",
    "pipeline.sources": "fetch",
    "pipeline.training": "autoencoder classifier second_classifier train distill",
    "pipeline.training.order": "autoencoder encode classifier second_classifier train distill sample likelihood",
    **{f"stages.{stage}": stage for stage in ALL.split() if stage != "second_classifier"},
    "stages.classifier": "classifier second_classifier",
    "sweeps.points": " | points",
    "sweeps.report": " | report",
}
# What can't change a result, so that no stage depends on it.
EXEMPT = {
    "lfm": "loads public names when they are first asked for",
    "lfm.__main__": "no stage uses the command",
    "lfm.cli": "no stage uses the command",
    "lfm.errors": "an exception class",
    "lfm.export": "no stage of the pipeline exports",
    "lfm.images": "scans and grids of the command",
    "lfm.page": "serves the page",
    "lfm.terminal": "no stage uses the command",
    "pipeline": "notes when the process began",
    "pipeline.entry": "reads the dvc.yaml that DVC itself compares",
    "pipeline.errors": "an exception class",
    "pipeline.http": "downloads whose checksums the callers compare",
    "pipeline.machine": "locks, signals, scratch and publishing: how a process ends, and that outputs are whole",
    "pipeline.params": "validates and never transforms: DVC compares the values",
    "pipeline.paths": "where relative paths begin: DVC compares the contents",
    "pipeline.progress": "log lines and progress bars",
    "pipeline.run": "starts a stage and prints its errors",
    "stages": "a docstring",
    "sweeps": "a docstring",
    "tools": "no stage uses it",
}
GRAPH = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)


def modules() -> dict[str, Path]:
    """Every module's file, a package's `__init__.py` among them, relative to the project."""
    files = [file.relative_to(ROOT) for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = modules()


def row(module: str, rows: dict[str, str]) -> str | None:
    """The name of the module's row: its own, or that of the nearest room around it, but not of a whole package."""
    while module not in rows and module.count(".") > 1:
        module = module.rpartition(".")[0]
    return module if module in rows else None


def exempt(module: str) -> bool:
    return row(module, EXEMPT) is not None or module.startswith("tools.")


def promised(module: str) -> tuple[set[str], set[str]]:
    """Stages of dvc.yaml and of sweeps/dvc.yaml that rerun when a module changes, by the table."""
    name = row(module, TABLE)
    pipeline, _, sweeps = (TABLE[name] if name else "").partition("|")
    return set(pipeline.split()), set(sweeps.replace("points", " ".join(POINTS)).split())


def covers(dep: str, module: str) -> bool:
    """Whether a dependency is the module's file, or a folder around it."""
    return Path(dep) in (MODULES[module], *MODULES[module].parents)


def test_every_module_has_one_row_and_every_row_a_module() -> None:
    for module in MODULES:
        assert (row(module, TABLE) is not None) != exempt(module), module
    assert {*TABLE, *EXEMPT} <= {*MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_stage_depends_on_a_module_where_the_table_says_so(module: str) -> None:
    for stages, expected in zip((STAGES, SWEEPS), promised(module), strict=True):
        assert {name for name, stage in stages.items() if any(covers(d, module) for d in stage["deps"])} == expected


@pytest.mark.parametrize(
    ("stage", "module"),
    [(STAGES[name], arguments(name)[1]) for name in STAGES]
    + [(SWEEPS[name], "sweeps.report" if name == "report" else "sweeps.points") for name in SWEEPS],
    ids=[*STAGES, *(f"sweeps {name}" for name in SWEEPS)],
)
def test_deps_cover_what_a_stage_imports_and_nothing_else(stage: dict[str, Any], module: str) -> None:
    assert f"python -m {module}" in stage["cmd"]
    imported, pending = set[str](), {module}
    while pending:  # what only exempt modules import can't change a result either
        imported |= pending
        pending = {m for p in pending for m in GRAPH.find_modules_directly_imported_by(p) if not exempt(m)} - imported
    code = [dep for dep in stage["deps"] if any(covers(dep, m) for m in MODULES)]
    assert [m for m in sorted(imported) if not any(covers(dep, m) for dep in code)] == []
    everything = GRAPH.find_upstream_modules(module) | {module}
    assert [dep for dep in code if not any(covers(dep, m) for m in everything)] == []


def test_dvc_reruns_what_the_table_says(changeable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(changeable)
    rooms: dict[Path, list[str]] = {}
    for module, file in MODULES.items():
        if file.exists():
            rooms.setdefault(file.parent, []).append(module)
    with Repo(str(changeable)) as repo:
        for together in zip_longest(*rooms.values()):  # one of each room at a time, so that a changed room tells which
            with ExitStack() as stack:
                for file in (MODULES[module] for module in together if module):
                    stack.enter_context(edited(file, file.read_text() + "# edited\n"))
                changed = {stage: {*changes[0]["changed deps"]} for stage, changes in repo.status().items()}
            for module in filter(None, together):
                stages = {stage for stage, deps in changed.items() if any(covers(dep, module) for dep in deps)}
                assert stages == promised(module)[0], module


def test_editing_sampling_evaluation_or_the_page_never_retrains() -> None:
    rooms = ("lfm.sampling", "lfm.evaluation", "pipeline.page")
    never = {m for m in MODULES if m.startswith(rooms)}
    assert "lfm.sampling.solver" in never
    assert not any(promised(module)[0] & TRAININGS for module in never)


@pytest.mark.parametrize(
    ("package", "others"),
    [("lfm", ("pipeline", "stages", "sweeps", "tools")), ("pipeline", ("stages", "sweeps", "tools"))],
)
def test_packages_import_nothing_that_stands_above_them(package: str, others: tuple[str, ...]) -> None:
    for module in [m for m in MODULES if m.split(".")[0] == package]:
        assert [m for m in GRAPH.find_modules_directly_imported_by(module) if m.split(".")[0] in others] == [], module


def test_stages_are_the_modules_that_dvc_yaml_names_and_rooms_hold_a_docstring() -> None:
    assert {arguments(stage)[1] for stage in STAGES} == {m for m in MODULES if m.startswith("stages.")}
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 195
    for module, file in MODULES.items():
        if file.name == "__init__.py" and "." in module:
            assert [type(node) for node in ast.parse(file.read_text()).body] == [ast.Expr], module


# --- parameters --------------------------------------------------------------------------------------------------------

PARAMS: dict[str, dict[str, Any]] = load_yaml((ROOT / "params.yaml").read_text())
# What they make then decides about the others. The page contains all parameters but `runtime`.
TRACKED_BY = {section: {section, "report"} for section in PARAMS} | {
    "data": {"fetch", "report"}, "model": {"train", "report"}, "flow": {"train", "report"}, "report": {"report"},
    "runtime": set[str](),
}  # fmt: skip


@pytest.mark.parametrize("section", PARAMS)
def test_a_changed_parameter_reruns_the_stages_that_track_it(
    changeable: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    monkeypatch.chdir(changeable)
    tree = load_yaml(Path("params.yaml").read_text(encoding="utf-8"))
    tree[section] = dict.fromkeys(PARAMS[section], "something else")
    with edited(changeable / "params.yaml", yaml.safe_dump(tree)), Repo(str(changeable)) as repo:
        status = repo.status()
    assert set(status) == TRACKED_BY[section]
    for (changes,) in status.values():
        assert [*changes["changed deps"]["params.yaml"]] == [section]

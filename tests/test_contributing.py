"""CONTRIBUTING's table of what to touch, as far as it can be checked."""

import ast
import re
from pkgutil import resolve_name
from typing import Any

import pytest

from tests.conftest import ROOT, parameters

TABLE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## What to touch")[2]
ROWS = {
    row.split("|")[1].strip(): re.findall(r"`([^`]+)`", row.split("|")[2])
    for row in re.findall(r"^\| a .*", TABLE, re.M)
}
# Parameter, its registry, an entry whose name stands nowhere else, and the row of the table.
REGISTRIES = [
    ("flow__path", "lfm.flow.path:PATHS", "gvp", "a probability path"),
    ("flow__weighting", "lfm.flow.loss:WEIGHTINGS", None, "a weighting of the loss"),
    ("flow__coupling", "lfm.flow.coupling:COUPLINGS", "ot", "a coupling, a schedule, a block"),
    ("train__schedule", "lfm.flow.schedule:SCHEDULES", None, "a coupling, a schedule, a block"),
    ("model__block", "lfm.nets.transformer:BLOCKS", None, "a coupling, a schedule, a block"),
    ("likelihood__solver", "lfm.sampling.solver:FIXED_STEP", "heun", "a solver"),
    ("data__dataset", "pipeline.sources.datasets:DATASETS", "kmnist", "a data set"),
]


def test_every_file_of_the_table_exists() -> None:
    assert len(ROWS) == 10
    for files in ROWS.values():
        assert files and all((ROOT / file).is_file() for file in files if "NAME" not in file), files


@pytest.mark.parametrize(("leaf", "registry", "entry", "row"), REGISTRIES, ids=[r[0] for r in REGISTRIES])
def test_an_entry_in_the_registry_is_all_that_a_variant_needs(
    monkeypatch: pytest.MonkeyPatch, leaf: str, registry: str, entry: str | None, row: str
) -> None:
    entries: dict[str, Any] = resolve_name(registry)
    module = registry.partition(":")[0].replace(".", "/") + ".py"
    assert module in ROWS[row] and len(ROWS[row]) <= 4
    monkeypatch.setitem(entries, "another", next(iter(entries.values())))
    section, _, key = leaf.partition("__")
    assert getattr(getattr(parameters(**{leaf: "another"}), section), key) == "another"
    if entry is not None:
        folders = ("lfm", "pipeline", "stages", "tools", "sweeps", "benchmarks")
        code = {
            p
            for folder in folders
            for p in (ROOT / folder).rglob("*.py")
            if f'"{entry}"' in p.read_text(encoding="utf-8")
        }
        assert code == {ROOT / module}


ROOMS = "lfm", "pipeline", "stages", "sweeps", "tools", "benchmarks", "examples", "web"


@pytest.mark.parametrize("room", ROOMS)
def test_text_is_opened_as_utf_8(room: str) -> None:
    """What ruff's PLW1514 can't see: methods of a `Path` that is an attribute or the result of an expression."""
    others = {"os", "Image", "archive"}  # whose `open` takes bytes
    for path in (ROOT / room).rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                of = getattr(call.func.value, "id", "")
                text = call.func.attr in ("read_text", "write_text") or (call.func.attr == "open" and of not in others)
                binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in call.args)
                named = any(k.arg == "encoding" for k in call.keywords)
                assert named or binary or not text, f"{path}:{call.lineno}"

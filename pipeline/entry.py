"""A stage as dvc.yaml describes it: the one home of its inputs, its outputs and the sections of params.yaml that it reads."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.params import PARAMS, Params, load_tree, load_yaml, validate_params

PIPELINE = Path("dvc.yaml")


class Entry(NamedTuple):
    """One stage of a dvc.yaml."""

    name: str
    cmd: str
    sections: dict[str, Path]  # of parameters: the file that each is read from
    deps: list[Path]
    outs: list[Path]

    def input(self, name: str) -> Path:
        """The dependency whose file or folder is called `name`, whatever its suffix and folder."""
        return _one(self.deps, name, f"in the deps of stage {self.name}")

    def output(self, name: str) -> Path:
        """The output whose file or folder is called `name`, whatever its suffix and folder."""
        return _one(self.outs, name, f"in the outs of stage {self.name}")

    def params(self) -> Params:
        """All parameters, those of this stage from the files that it names. Raises `UserError` where one is wrong."""
        tree = load_tree(PARAMS)
        others = {file: load_tree(file) for file in {*self.sections.values()} - {PARAMS}}
        for section, file in self.sections.items():
            if file in others:
                if section not in others[file]:
                    raise UserError(f"{file}: has no section {section}, which stage {self.name} reads; add it")
                tree = {**tree, section: others[file][section]}
        return validate_params(tree, " and ".join(map(str, [PARAMS, *sorted(others)])))


def read_entry(name: str, file: Path = PIPELINE) -> Entry:
    """The stage `name`. Raises `UserError` where there is none."""
    stages = load_yaml(file.read_text(encoding="utf-8"))["stages"]
    if name not in stages:
        raise UserError(f"{file}: has no stage '{name}'; it has {', '.join(stages)}")
    stage = stages[name].get("do", stages[name])  # of a template, `foreach` … `do`
    sections: dict[str, Path] = {}
    for item in stage.get("params", []):
        for path, names in item.items() if isinstance(item, dict) else [(PARAMS, [item])]:
            sections |= dict.fromkeys(names, Path(path))
    outs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return Entry(name, stage["cmd"], sections, [Path(dep) for dep in stage["deps"]], [out_path(out) for out in outs])


def out_path(out: str | dict[str, Any]) -> Path:
    """The path of an out, which dvc.yaml may give properties such as `cache: false`."""
    return Path(out if isinstance(out, str) else next(iter(out)))


def _one(paths: list[Path], name: str, place: str) -> Path:
    named = [path for path in paths if path.stem == name and not _is_code(path)]
    if len(named) != 1:
        raise UserError(f"{PIPELINE}: {len(named)} files or folders called '{name}' {place}; there must be one")
    return named[0]


def _is_code(path: Path) -> bool:
    """A module or a room, such as lfm/flow beside models/flow."""
    return path.suffix == ".py" or (path / "__init__.py").is_file()

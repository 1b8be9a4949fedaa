"""The reference of all parameters, docs/params.md, from params.yaml and the descriptions in pipeline/params.py.

python -m tools.params
"""

import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import yaml
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic.fields import FieldInfo

from pipeline.params import PARAMS, Params, load_yaml

PAGE = Path("docs/params.md")
PIPELINE = Path("dvc.yaml")
CHOICE = " | "  # between the names that a comment of params.yaml lists
BEGINNING = """# Parameters

All of `params.yaml`, written by `python -m tools.params`. Set one for an experiment with
`dvc exp run --temp -S section.key=value`, or edit the file and run `dvc repro`.
"""
BOUNDS = {
    Ge: ("ge", "≥"),
    Gt: ("gt", ">"),
    Le: ("le", "≤"),
    Lt: ("lt", "<"),
    MultipleOf: ("multiple_of", "a multiple of"),
}


def leaves(text: str) -> dict[str, tuple[str, str]]:
    """Value and comment of every key, as params.yaml writes them: {"section.key": (value, comment)}."""
    found, section = dict[str, tuple[str, str]](), ""
    for line in text.splitlines():
        if heading := re.match(r"(\w+):", line):
            section = heading[1]
        elif leaf := re.match(r"  (\w+): (.+?)(?: # (.*))?$", line):
            found[f"{section}.{leaf[1]}"] = leaf[2], leaf[3] or ""
    return found


def choices(field: FieldInfo) -> list[str]:
    """The names that a field accepts: of its registry, or of its literal."""
    for part in field.metadata:
        if registry := getattr(part, "func", None) and getattr(part.func, "registry", None):
            return list(resolve_name(registry))
    return [name for name in get_args(field.annotation) if isinstance(name, str)]


def accepts(field: FieldInfo) -> str:
    """The range of a number, the names of a choice; "" where the default shows the type and more is to be said by words."""
    if names := choices(field):
        return ", ".join(names)
    if field.annotation is bool:
        return "true, false"
    rules = [
        (BOUNDS[type(rule)][1], getattr(rule, BOUNDS[type(rule)][0])) for rule in field.metadata if type(rule) in BOUNDS
    ]
    return ", ".join(f"{sign} {limit:g}" for sign, limit in rules if abs(limit) < 1e9)


def fields() -> dict[str, FieldInfo]:
    """Every leaf of `Params`: {"section.key": its field}."""
    sections: dict[str, Any] = {name: section.annotation for name, section in Params.model_fields.items()}
    return {f"{name}.{key}": field for name, model in sections.items() for key, field in model.model_fields.items()}


def reference() -> str:
    """The page."""
    stages = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"]
    written, known = leaves(PARAMS.read_text(encoding="utf-8")), fields()
    lines = [BEGINNING]
    for section in load_yaml(PARAMS.read_text(encoding="utf-8")):
        readers = [name for name, stage in stages.items() if section in stage["params"] and name != "report"]
        lines += [
            f"## {section}",
            "",
            f"Read by {', '.join(f'`{name}`' for name in readers)}." if readers else NOBODY[section],
            "",
        ]
        lines += ["| key | default | accepts | what it is |", "|---|---|---|---|"]
        for key, field in known.items():
            if key.startswith(f"{section}."):
                value, comment = written[key]
                said = comment if CHOICE in comment else accepts(field)
                cells = [f"`{key}`", f"`{value}`", said, field.description or ""]
                lines.append("| " + " | ".join(cell.replace(CHOICE, ", ").replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


NOBODY = {
    "report": "Read by `report`, which shows all other parameters too.",
    "runtime": "No stage tracks it: it can't change a result.",
}


def main() -> None:
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"{PAGE}: {len(fields())} parameters")


if __name__ == "__main__":
    main()

"""The same pipeline in a folder of its own: what `make demo` and the tests run, leaving the working tree as it was."""

import hashlib
import shlex
import shutil
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dump_yaml

from pipeline.errors import UserError
from pipeline.params import load_yaml, validate_params

CODE = ("lfm", "pipeline", "stages", "dvc.yaml", ".dvcignore")


def read_preset(preset: Path) -> dict[str, Any]:
    """The `-S section.key=value` flags of a preset file: {"section.key": value}."""
    words = shlex.split(preset.read_text(encoding="utf-8"))
    if words[::2] != ["-S"] * (len(words) // 2) or len(words) % 2:
        raise UserError(f"{preset}: must hold `-S section.key=value` flags alone; mend it")
    pairs = (word.partition("=") for word in words[1::2])
    return {key: load_yaml(value) for key, _, value in pairs}


def apply(params: dict[str, Any], changes: dict[str, Any], origin: str) -> dict[str, Any]:
    """Parameters with some leaves changed, validated; `params` itself stays as it is."""
    changed = {section: dict(leaves) for section, leaves in params.items()}
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        if leaf not in changed.get(section, {}):
            raise UserError(f"{origin}: {key} is not a known key; see params.yaml")
        changed[section][leaf] = value
    validate_params(changed, origin)
    return changed


def make_workspace(root: Path, target: Path, preset: Path | None = None) -> None:
    """Copy the project's code to `target`, with a preset applied to its parameters and a DVC cache of its own.

    What an earlier call left there stays in DVC's cache, so a second run does only what has changed.
    """
    params = load_yaml((root / "params.yaml").read_text(encoding="utf-8"))
    if preset:
        params = apply(params, read_preset(preset), str(preset))
    for name in CODE:
        source, copy = root / name, target / name
        if source.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    # PyYAML writes the string 1e5 as YAML 1.1 has it: DVC would read a number.
    dump_yaml(target / "params.yaml", params)
    (target / ".dvc").mkdir(exist_ok=True)
    config = (root / ".dvc/config").read_text(encoding="utf-8").replace("[core]", "[core]\n    no_scm = true")
    (target / ".dvc/config").write_text(config, encoding="utf-8")


def outs(workspace: Path) -> dict[str, str]:
    """sha256 of every file that a stage makes there."""
    stages = load_yaml((workspace / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    digests: dict[str, str] = {}
    for stage in stages.values():
        for out in [*stage["outs"], *(name for entry in stage.get("metrics", []) for name in entry)]:
            path = workspace / out
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            digests |= {
                str(f.relative_to(workspace)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()
            }
    return digests

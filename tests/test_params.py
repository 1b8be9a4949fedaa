"""params.yaml: read as DVC reads it, and every parameter refused in every way in which its kind can be wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import parse_yaml

from pipeline.errors import UserError
from pipeline.params import load_params, load_yaml, validate_params
from pipeline.sources.datasets import DATASETS
from tests.conftest import ROOT, Case, Scene
from tools.params import CHOICE, PAGE, choices, fields, leaves, reference
from tools.workspace import apply, make_workspace, read_preset

TEXT = (ROOT / "params.yaml").read_text()
TREE: dict[str, dict[str, Any]] = load_yaml(TEXT)
LEAVES = [f"{section}.{key}" for section, leaves in TREE.items() for key in leaves]
WRONG: tuple[Any, ...] = (-(10**30), 10**30, math.nan, math.inf, True, "5", "", None, {"a": 1}, [])


def changed(**changes: Any) -> dict[str, dict[str, Any]]:
    """The project's parameters, some leaves replaced: section__key=value."""
    tree = {section: dict(leaves) for section, leaves in TREE.items()}
    for name, value in changes.items():
        section, _, leaf = name.partition("__")
        tree[section][leaf] = value
    return tree


def words_of(tree: Any) -> str:
    with pytest.raises(UserError) as error:
        validate_params(tree, "params.yaml")
    return str(error.value)


def accepted(key: str) -> str:
    """What the errors say that a parameter accepts, each once."""
    words = list[str]()
    for value in WRONG:
        try:
            validate_params(changed(**{key.replace(".", "__"): value}), "params.yaml")
        except UserError as error:
            message = str(error)
            start = f"params.yaml: {key} is {value!r}: "
            assert message.startswith(start) or f"{key} " in message, "a check of several keys names them all"
            words.append(message.removeprefix(start))
    assert len(words) >= 3
    return " | ".join(dict.fromkeys(words))


@pytest.mark.parametrize("section", TREE)
def test_every_section_and_parameter_must_be_there_and_no_other(section: str) -> None:
    for key in TREE[section]:
        rest = {k: v for k, v in TREE[section].items() if k != key}
        assert words_of(TREE | {section: rest}).startswith(f"params.yaml: {section}.{key}: ")
    unknown = words_of(changed(**{f"{section}__typo": 1}))
    assert unknown.startswith(f"params.yaml: {section}.typo is 1: ")
    assert unknown.endswith(f"known here: {', '.join(TREE[section])}")
    assert words_of(TREE | {section: 3}).startswith(f"params.yaml: {section} is 3: ")
    assert words_of({k: v for k, v in TREE.items() if k != section}).startswith(f"params.yaml: {section}: ")


def test_the_params_of_the_project_are_valid_and_frozen() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.train.steps = 1


def test_the_registry_of_data_sets_decides_which_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "letters", DATASETS["mnist_sample"])
    assert validate_params(changed(data__dataset="letters"), "params.yaml").data.dataset == "letters"


def test_yaml_means_what_it_means_to_dvc() -> None:
    odd = "[1e-5, 1.e-5, +1.5e-05, .5, 010, 0o17, 0x1F, 1_000, yes, off, 1:30, ~, {<<: {a: 1}, b: 2}, '5', !!str 5]"
    values = [1e-5, 1e-5, 1.5e-5, 0.5, 10, 15, 31, 1000, "yes", "off", "1:30", None, {"a": 1, "b": 2}, "5", "5"]
    assert repr(load_yaml(odd)) == repr(parse_yaml(odd, "odd.yaml")) == repr(values)


def test_a_workspace_has_the_parameters_that_it_was_given(tmp_path: Path) -> None:
    odd = {"data.root": "1e5", "autoencoder.revision": "0o17", "data.digest": "1_0", "train.learning_rate": 1e-5}
    (tmp_path / "preset").write_text(" ".join(f'-S "{key}={value!r}"' for key, value in odd.items()))
    make_workspace(ROOT, tmp_path / "work", tmp_path / "preset")
    made = load_yaml((tmp_path / "work/params.yaml").read_text())
    assert {key: made[key.split(".")[0]][key.split(".")[1]] for key in odd} == odd


# --- what is refused ---------------------------------------------------------------------------------------------------


def refused(key: str, **changes: Any) -> Case:
    return UserError, f"params.yaml: {key}", lambda scene: validate_params(changed(**changes), "params.yaml")


def file(text: str | None) -> Case:
    def read(scene: Scene) -> None:
        if text is not None:
            (scene.tmp / "params.yaml").write_text(text)
        load_params(scene.tmp / "params.yaml")

    return UserError, "params.yaml", read


def preset(text: str) -> Case:
    def read(scene: Scene) -> None:
        (scene.tmp / "mine").write_text(text)
        apply(TREE, read_preset(scene.tmp / "mine"), str(scene.tmp / "mine"))

    return UserError, "mine", read


def everything_wrong(key: str) -> Case:
    def check(scene: Scene) -> None:
        raise UserError(f"{key}: {accepted(key)}")

    return UserError, key, check


ERRORS: dict[str, Case] = {
    **{f"params, {key}": everything_wrong(key) for key in LEAVES},
    "params, steps below warm-up": refused("train.warmup_steps", train__steps=100, train__warmup_steps=100),
    "params, guidance without labels": refused("sample.guidance_scale", model__labels=False, sample__guidance_scale=2),
    "params, width and heads": refused("model.width", model__width=130),
    "params, width and heads, modern": refused("model.width", model__width=20, model__block="modern"),
    "params, autoguidance without a weak model": refused("sample.autoguidance_scale 2", train__weak_steps=None),
    "params, interval of autoguidance falls": refused(
        "distill.autoguidance_interval", distill__autoguidance_interval=[0.9, 0.2]
    ),
    "params, warm-up longer than the weak training": refused(
        "train.warmup_steps 200 must be below weak_steps", train__weak_steps=100, train__warmup_steps=200
    ),
    "params, interval falls": refused("sample.guidance_interval", sample__guidance_interval=[0.9, 0.2]),
    "params, interval of three": refused("sample.guidance_interval", sample__guidance_interval=[0, 1, 1]),
    "params, interval beyond 1": refused("sample.guidance_interval.1", sample__guidance_interval=[0, 1.5]),
    "params, times twice": refused("sample.trajectory_times", sample__trajectory_times=[0, 0]),
    "params, snapshots fall": refused("train.snapshots", train__snapshots=[0.5, 0]),
    "params, snapshot nan": refused("train.snapshots", train__snapshots=[0, math.nan]),
    "params, six widths": refused("autoencoder.widths", autoencoder__widths=[8] * 6),
    "params, width 60": refused("autoencoder.widths.0", autoencoder__widths=[60]),
    "params, folder without root": refused("data.root", data__dataset="folder"),
    "params, odd size": refused("data.image_size", data__image_size=33),
    "params, fraction of a step": refused("train.steps", train__steps=1.5),
    "params, number of 5,000 digits": refused("train.steps", train__steps=10**5000),
    "params, empty": file(""),
    "params, a list": file("[1]"),
    "params, none": file(None),
    "params, unknown section": file(TEXT + "extra:\n  a: 1\n"),
    "params, unknown key": file(TEXT + "  colour: 1\n"),
    "params, missing key": file(TEXT.replace("  sigma_min: 1e-3", "  sigma: 1e-3")),
    "params, key twice": file(TEXT + "  progress: false\n"),
    "params, key is a number": file(TEXT + "  1: 2\n"),
    "params, not YAML": file("data: ["),
    "params, two documents": file(TEXT + "---\na: 1\n"),
    "params, python object": file("!!python/object/apply:os.system [ls]"),
    "params, word for a boolean": file(TEXT.replace("progress: true", "progress: yes")),
    "params, sexagesimal": file(TEXT.replace("zoom: 2", "zoom: 1:30")),
    "preset, unknown key": preset("-S train.step=3"),
    "preset, other words": preset("train.steps=3"),
}  # fmt: skip


# --- the reference -----------------------------------------------------------------------------------------------------


def test_the_reference_is_what_the_descriptions_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert PAGE.read_text(encoding="utf-8") == reference(), "stale; `python -m tools.params` writes it again"


def test_every_parameter_is_described_and_comments_say_the_same() -> None:
    """A comment in params.yaml lists the choices, all of them, or is the description."""
    known = fields()
    assert list(known) == LEAVES == list(leaves(TEXT))
    for key, (_, comment) in leaves(TEXT).items():
        description, names = known[key].description, choices(known[key])
        assert description, key
        if CHOICE in comment:
            assert all(name in comment for name in names), (key, names)
        else:
            assert comment in ("", description), key

"""Every parameter, wrong in every way that its kind knows: the key, the value and what is accepted, word for word."""

import math
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.params import Loader, validate_params
from tests.conftest import ROOT

TREE: dict[str, dict[str, Any]] = yaml.load((ROOT / "params.yaml").read_text(), Loader)
LEAVES = [f"{section}.{key}" for section, leaves in TREE.items() for key in leaves]

# What is said of -10³⁰, and of 10³⁰.
INTEGERS = {
    (
        "at least 0",
        "less than 9223372036854775808",
    ): "data.seed autoencoder.seed classifier.seed train.seed sample.seed likelihood.seed evaluate.seed",
    ("at least 0", "at most 1000000000"): "train.warmup_steps runtime.latents_mb",
    ("at least 1", "at most 1000000000"): "autoencoder.steps autoencoder.batch_size classifier.steps encode.batch_size "
    "train.steps train.batch_size train.validate_every sample.batch_size likelihood.images likelihood.batch_size "
    "evaluate.batch_size runtime.checkpoint_every",
    ("at least 1", "at most 10000"): "sample.steps sample.inversion_steps likelihood.steps",
    ("at least 1", "at most 784"): "evaluate.pixel_components",
    ("at least 1", "at most 128"): "model.heads",
    ("at least 1", "at most 100"): "model.depth evaluate.neighbours",
    ("at least 1", "at most 64"): "autoencoder.latent_channels model.patch_size",
    ("at least 0", "at most 16"): "autoencoder.shift",
    ("at least 1", "at most 16"): "report.zoom",
    ("at least 1", "at most 8"): "autoencoder.layers",
    ("at least 2", "at most 1000000"): "classifier.batch_size",
    ("at least 2", "at most 10000"): "evaluate.bootstrap",
    ("at least 2", "at most 1000"): "evaluate.kid_blocks",
    ("at least 4", "at most 8192"): "model.width",
    ("at least 8", "at most 1024"): "data.image_size",
    ("1, 2 or 4", "1, 2 or 4"): "autoencoder.unshuffle",
}
NUMBERS = {
    ("greater than 0", "at most 1"): "autoencoder.learning_rate classifier.learning_rate train.learning_rate",
    ("greater than 0", "at most 10"): "flow.logit_std",
    ("greater than 0", "at most 16"): "model.mlp_ratio",
    ("greater than 0", "less than 1"): "train.beta2 evaluate.nearest_quantile",
    ("greater than 0", None): "train.gradient_clip",
    ("at least 0", "at most 1"): "autoencoder.kl_weight flow.uniform_share train.weight_decay",
    ("at least 0", "less than 1"): "flow.sigma_min train.ema_decay train.label_dropout",
    ("at least 0", "at most 10"): "sample.noise_strength",
    ("at least 0", "at most 100"): "sample.guidance_scale",
    ("at least 0.01", "at most 100"): "sample.time_shift",
    ("at least 0.0000001", "less than 1"): "sample.rtol sample.atol",
    ("at least -10", "at most 10"): "flow.logit_mean",
}
CHOICES = {
    "'mnist', 'fashion_mnist', 'kmnist', 'digits' or 'folder'": "data.dataset",
    "'measured' or 'config'": "encode.scale",
    "'bundled' or 'train'": "classifier.source",
    "'bf16' or 'float32'": "autoencoder.precision classifier.precision encode.precision train.precision sample.precision",
    "'dit' or 'modern'": "model.block",
    "'cond_ot', 'gvp' or 'vp'": "flow.path",
    "'velocity' or 'data'": "flow.prediction",
    "'independent' or 'ot'": "flow.coupling",
    "'uniform', 'stratified', 'systematic' or 'logit_normal'": "flow.times",
    "'cosine' or 'constant'": "train.schedule",
    "'euler', 'midpoint', 'heun', 'rk4', 'dopri5' or 'euler_maruyama'": "sample.solver",
    "'hutchinson' or 'exact'": "likelihood.divergence",
    "'euler', 'midpoint', 'heun' or 'rk4'": "likelihood.solver",
}
KINDS = {
    "a valid boolean": "data.skip_broken autoencoder.compile model.labels train.compile runtime.progress",
    "a valid list": "autoencoder.widths train.snapshots sample.guidance_interval sample.trajectory_times",
    "a valid string": "autoencoder.source autoencoder.revision data.root data.digest",
}
HUGE = 10**30


def cases() -> list[tuple[str, Any, str]]:
    """Key, a value of the wrong kind or out of range, what is accepted."""
    found: list[tuple[str, Any, str]] = []
    for table, kind, nan in ((INTEGERS, "a valid integer", "a valid integer"),
                             (NUMBERS, "a valid number", "a finite number")):  # fmt: skip
        for (below, above), keys in table.items():
            for key in keys.split():
                told = {-HUGE: below, HUGE: above, math.nan: nan, math.inf: nan, True: kind, "5": kind, None: kind}
                found += [(key, value, accepted) for value, accepted in told.items() if accepted is not None]
    for accepted, keys in (CHOICES | KINDS).items():
        found += [(key, value, accepted) for key in keys.split() for value in (HUGE, math.nan, {"a": 1})]
    found += [
        (key, value, accepted) for accepted, keys in CHOICES.items() for key in keys.split() for value in ("", None)
    ]
    return [case for case in found if case[:2] != ("train.gradient_clip", None)]  # null: no limit


def told(tree: Any) -> str:
    with pytest.raises(UserError) as error:
        validate_params(tree, "params.yaml")
    return str(error.value)


def changed(key: str, value: Any) -> dict[str, dict[str, Any]]:
    section, _, leaf = key.partition(".")
    return {name: leaves | ({leaf: value} if name == section else {}) for name, leaves in TREE.items()}


@pytest.mark.parametrize("key", LEAVES)
def test_every_parameter_says_what_it_accepts(key: str) -> None:
    mine = [(value, accepted) for name, value, accepted in cases() if name == key]
    assert len(mine) >= 3
    for value, accepted in mine:
        assert told(changed(key, value)) == f"params.yaml: {key} is {value!r}; it must be {accepted}"


@pytest.mark.parametrize("key", LEAVES)
def test_every_parameter_must_be_there(key: str) -> None:
    section, _, leaf = key.partition(".")
    tree = changed(key, 0)
    del tree[section][leaf]
    assert told(tree) == f"params.yaml: {key} is missing; add it (`git diff params.yaml` shows what was removed)"


@pytest.mark.parametrize("section", TREE)
def test_every_section_must_be_one_and_know_its_keys(section: str) -> None:
    known = ", ".join(TREE[section])
    assert told(changed(f"{section}.typo", 1)) == f"params.yaml: {section}.typo is not a known key; known here: {known}"
    assert told(TREE | {section: 3}) == f"params.yaml: {section} is 3; it must be a section of keys"
    assert told({k: v for k, v in TREE.items() if k != section}).startswith(
        f"params.yaml: {section} is missing; add it"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.steps": 100, "train.warmup_steps": 100}, "train.warmup_steps 100 must be below steps (100); lower it"),
        ({"model.labels": False, "sample.guidance_scale": 2},
         "sample.guidance_scale 2 needs labels, and model.labels is false; set it to 1"),
        ({"model.width": 130, "model.heads": 2},
         "model.width 130 must be a multiple of 4 and of heads (2); change one of them"),
        ({"model.width": 20, "model.heads": 2, "model.block": "modern"},
         "model.width 20 must with block modern be a multiple of 4 · heads (8); change one of them"),
        ({"sample.guidance_interval": [0.9, 0.2]}, "sample.guidance_interval [0.9, 0.2] must rise; swap its ends"),
        ({"sample.guidance_interval": [0, 1, 1]},
         "sample.guidance_interval is [0, 1, 1]; it must have at most 2 items, not 3"),
        ({"sample.guidance_interval": [0, 1.5]}, "sample.guidance_interval.1 is 1.5; it must be at most 1"),
        ({"sample.trajectory_times": [0, 0]}, "sample.trajectory_times [0.0, 0.0] must rise, each once; sort them"),
        ({"train.snapshots": [0, math.nan]}, "train.snapshots is nan; it must be a finite number"),
        ({"autoencoder.widths": [8] * 6},
         "autoencoder.widths is [8, 8, 8, 8, 8, 8]; it must have at most 5 items, not 6"),
        ({"autoencoder.widths": [0]}, "autoencoder.widths.0 is 0; it must be at least 8"),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_told(changes: dict[str, Any], message: str) -> None:
    tree = TREE
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        tree = tree | {section: tree[section] | {leaf: value}}
    assert told(tree) == f"params.yaml: {message}"

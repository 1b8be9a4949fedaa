"""tools.compare: intervals against known numbers, and a table of real experiments in tests/test_experiments.py."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from pipeline.errors import UserError
from tests.conftest import ROOT
from tools.compare import DIRECTIONS, SHOWN, Run, by_variant, combinations, compare, metric, missing, overridden, table

BASE = overridden([])


def runs(values: dict[int, float], name: str = "fd_generated", **params: Any) -> list[Run]:
    """A run for each seed, with one figure; params as section__key."""
    changed = BASE | {key.replace("__", "."): value for key, value in params.items()}
    return [
        Run(f"{seed}", changed | {"train.seed": seed, "sample.seed": seed}, {name: value}, "success")
        for seed, value in values.items()
    ]


def rows(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]


def test_the_interval_is_students_for_paired_differences() -> None:
    # mean 2, sd 1, n 3: half = 4.3027 / √3
    known = compare([1, 2, 3])
    assert (known.pairs, known.mean) == (3, 2) and known.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    draws = np.random.default_rng(0)
    a, b = draws.normal(size=(2, 12))
    theirs = ttest_rel(a, b).confidence_interval(0.95)
    ours = compare((a - b).tolist())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_an_interval_holds_the_true_difference_in_19_of_20() -> None:
    draws = np.random.default_rng(0).normal(0.3, 2, (1000, 4))
    held = np.mean([(d := compare(row)).low <= 0.3 <= d.high for row in draws.tolist()])
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


@pytest.mark.parametrize(
    ("differences", "sign", "word"),
    [
        ([-1.0, -1.1, -0.9], -1, "better"),
        ([-1.0, -1.1, -0.9], 1, "worse"),
        ([-1.0, -1.1, -0.9], 0, "differs"),
        ([0.0, 0.0], -1, "the same"),
        ([-1.0, 1.0], -1, "can't tell, nor would 1000 seeds"),
        # mean 2, sd 1: 3.182 / √4 = 1.59 < 2 < 4.303 / √3 = 2.48
        ([1.0, 2.0, 3.0], 1, "can't tell; about 1 more seed would"),
        # mean 1, sd 1: 2.571 / √6 = 1.05, 2.447 / √7 = 0.92, so seven pairs
        ([0.0, 1.0, 2.0], 1, "can't tell; about 4 more seeds would"),
        ([5.0], 1, "can't tell: 1 seed in common, 2 are the least"),
        ([], 1, "can't tell: 0 seeds in common, 2 are the least"),
    ],
)
def test_one_word_says_it(differences: list[float], sign: int, word: str) -> None:
    assert compare(differences).word(sign) == word


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    """Seeds differ by ten times the effect, the effect by little: pairs tell it from nothing, means ± sd would not."""
    base = {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0}
    variant = {0: 9.0, 1: 18.9, 2: 29.1, 7: 0.0}  # seed 7 has no partner and counts in the mean alone
    lines = table(by_variant(runs(base) + runs(variant, flow__path="gvp"), BASE), ["fd_generated"])
    assert rows(lines) == [
        ["fd_generated", "baseline", "4", "25 ± 13", "", ""],
        ["(less is better)", "flow.path=gvp", "4", "14 ± 13", "-1.00 [-1.25, -0.75]", "better"],
    ]


def test_what_changes_the_unit_is_not_compared() -> None:
    cases: list[tuple[dict[str, Any], str, bool]] = [
        ({"flow__path": "gvp"}, "validation_loss", False),
        ({"flow__prediction": "data"}, "validation_loss", False),
        ({"classifier__source": "train"}, "fd_generated", False),
        ({"encode__scale": "config"}, "bits_per_dim", False),
        ({"train__steps": 100}, "bits_per_dim", True),
    ]
    for change, name, comparable in cases:
        both = runs({0: 1, 1: 2}, name) + runs({0: 1, 1: 2}, name, **change)
        word = rows(table(by_variant(both, BASE), [name]))[1][-1]
        assert word == ("the same" if comparable else "not comparable: it changes what is measured"), change


def test_equal_runs_count_once_and_contradictions_are_named() -> None:
    twice = runs({0: 1.0, 1: 2.0}) + runs({1: 2.0}, runtime__progress=False, report__zoom=3)
    assert [len(group) for group in by_variant(twice, BASE).values()] == [2]
    with pytest.raises(UserError, match="experiments 1 and 1 have the same parameters and different figures"):
        by_variant(twice + runs({1: 3.0}), BASE)


def test_chance_is_counted() -> None:
    both = runs({0: 1, 1: 2}) + runs({0: 3, 1: 2}, flow__path="gvp") + runs({0: 3, 1: 1}, flow__path="vp")
    assert table(by_variant(both, BASE), ["fd_generated"])[-1] == (
        "2 comparisons; of equal variants about 0.1 would be called different by chance."
    )


def test_only_what_is_missing_is_queued() -> None:
    assert combinations(["flow.path=gvp,vp", "train.steps=range(300,302)"]) == [
        ["flow.path=gvp", "train.steps=300"], ["flow.path=gvp", "train.steps=301"],
        ["flow.path=vp", "train.steps=300"], ["flow.path=vp", "train.steps=301"],
    ]  # fmt: skip
    there = [*runs({0: 1.0, 1: 1.0}), *runs({0: 1.0}, flow__path="gvp")]
    seed = [["train.seed=0", "sample.seed=0"], ["train.seed=1", "sample.seed=1"]]
    assert missing(["flow.path=gvp"], 2, there) == [["flow.path=gvp", *seed[1]]]
    failed = [run._replace(state="failed") for run in there]
    assert missing(["flow.path=cond_ot,gvp"], 2, failed) == [*seed, *(["flow.path=gvp", *s] for s in seed)]


def test_a_mistaken_flag_is_refused_before_anything_is_queued() -> None:
    for flag, reason in {
        "flow.pat=gvp": "Could not override 'flow.pat'",
        "train.steps": "missing EQUAL",
        "train.steps=none": "train.steps is 'none': Input should be a valid integer",
        "flow.path=gpv": "flow.path is 'gpv': Input should be 'cond_ot', 'gvp' or 'vp'",
    }.items():
        with pytest.raises(UserError, match=f"^-S {flag}") as error:
            missing([flag], 2, [])
        assert reason in str(error.value) and "\n" not in str(error.value)


def test_every_figure_has_a_direction() -> None:
    figures = json.loads((ROOT / "reports/metrics.json").read_text(encoding="utf-8"))
    assert set(SHOWN) <= set(figures)
    named = {*figures, "fd_generated_sd", "fd_generated_error"}  # the error's name in older and in newer commits
    used = {max((d for d in DIRECTIONS if name.startswith(d)), key=len) for name in named if metric(name)}
    assert used == set(DIRECTIONS), "each entry is of a figure"
    signs = {name: metric(name).sign for name in figures}
    assert {n for n, sign in signs.items() if not sign} - {"fd_generated_sd", "fd_generated_error"} == {
        "fd_validation", "fd_pixels_validation", "fd_second_validation", "kid_validation_x1000", "two_sample_validation",
        "accuracy_test", "memorised",
    }  # fmt: skip
    with pytest.raises(UserError, match="no figure of that name"):
        metric("beauty")

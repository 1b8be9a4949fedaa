"""Checks that must fail when they should: spoilt sets of real digits, each noticed by the figure that is there for it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA

from lfm.evaluation.neighbours import memorised, nearest
from lfm.evaluation.protocol import Findings, View, flat, judge, view
from lfm.nets.classifier import Classifier
from lfm.nets.weights import load_model
from pipeline.artifacts.files import PRETRAINED
from pipeline.params import load_params
from pipeline.progress import Progress
from pipeline.sources.datasets import DATASETS, hold_out
from tests.conftest import ROOT

P = load_params(ROOT / "params.yaml")
E = P.evaluate.model_copy(update={"bootstrap": 10})


class World(NamedTuple):
    """Real digits: `test` and `validation` set the floor, `other` are as many real ones to spoil."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    training: np.ndarray  # (M, P)
    see: Callable[[np.ndarray, np.ndarray], View]
    floor: dict[str, View]
    unseen: np.ndarray  # distances of the test digits to their nearest training images


def halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every other row of each class."""
    rows = np.argsort(labels, kind="stable")
    return rows[::2], rows[1::2]


@pytest.fixture(scope="module")
def world(mirror: str) -> World:
    full, test, *_ = DATASETS["mnist"](P.data, False)
    train, validation = hold_out(full, test.labels, P.data.seed)
    first, second = halves(validation.labels)
    half, _ = halves(test.labels)
    images = {"test": test.images[half], "validation": validation.images[first], "other": validation.images[second],
              "train": train.images[:10_000]}  # fmt: skip
    labels = {"test": test.labels[half], "validation": validation.labels[first], "other": validation.labels[second],
              "train": train.labels[:10_000]}  # fmt: skip
    classifier = load_model(ROOT / PRETRAINED / "classifier", Classifier)
    components = PCA(E.pixel_components, svd_solver="covariance_eigh").fit(flat(images["train"]))

    def see(x: np.ndarray, y: np.ndarray) -> View:
        with Progress(len(y), "", "image", show=False) as progress:
            return view(classifier, components, x, y, 500, progress)

    floor = {name: see(images[name], labels[name]) for name in ("test", "validation")}
    training = components.transform(flat(images["train"]))
    return World(images, labels, training, see, floor, nearest(floor["test"].pixels, training)[1])


def look(world: World, images: np.ndarray, labels: np.ndarray) -> Findings:
    """What the protocol says of these as if they were generated."""
    seen = world.see(images, labels)
    sets = world.floor | {"generated": seen, "reconstructed": world.floor["validation"]}
    copied = {
        name: 100 * memorised(nearest(sets[name].pixels, world.training)[1], world.unseen, E.nearest_quantile)
        for name in ("generated", "validation")
    }
    return judge(sets, copied, E)


def flagged(found: Findings) -> set[str]:
    return {c.name for c in (*found.conditions, *found.alarms) if not c.holds}


def test_other_real_images_pass_all(world: World) -> None:
    assert flagged(look(world, world.images["other"], world.labels["other"])) == set()


def blurred(x: np.ndarray) -> np.ndarray:
    return gaussian_filter(x, (0, 0, 0.7, 0.7))


def shifted(x: np.ndarray) -> np.ndarray:
    return np.roll(x, 1, axis=-1)


def noisy(x: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 25, x.shape)
    return (x + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (blurred, {"Fréchet distance", "two-sample test"}),
        (shifted, {"pixels"}),
        (noisy, {"Fréchet distance", "two-sample test"}),
    ],
)
def test_spoilt_pixels_are_noticed(world: World, spoil: Callable[[np.ndarray], np.ndarray], expected: set[str]) -> None:
    assert expected <= flagged(look(world, spoil(world.images["other"]), world.labels["other"]))


def test_a_missing_digit_is_noticed(world: World) -> None:
    labels = world.labels["other"]
    rows = np.arange(len(labels))
    rows[labels == 7] = np.resize(np.flatnonzero(labels == 1), (labels == 7).sum())
    assert {"class balance", "Fréchet distance", "precision/recall"} <= flagged(
        look(world, world.images["other"][rows], labels)
    )


def test_shuffled_labels_are_noticed_by_accuracy(world: World) -> None:
    labels = np.random.default_rng(0).permutation(world.labels["other"])
    found = look(world, world.images["other"], labels)
    assert "accuracy" in flagged(found) and "class balance" not in flagged(found)


def test_memorised_training_images_are_noticed(world: World) -> None:
    half = len(world.images["other"])
    assert "no memorising" in flagged(look(world, world.images["train"][:half], world.labels["train"][:half]))

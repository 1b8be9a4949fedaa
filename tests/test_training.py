"""The training loop on data small enough to know what must come out."""

import json
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfm import random
from lfm.flow.path import as_velocity, last_time, make_path
from lfm.nets.transformer import Transformer
from lfm.sampling.guidance import guided
from lfm.sampling.solver import integrate, time_grid
from pipeline.artifacts.flow import check_guidance
from pipeline.artifacts.latents import Latents
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.progress import Live, Progress
from pipeline.training.loop import compiled
from stages.train import BINS, SNAPSHOT_NOISES, SNAPSHOT_STEPS, Result, Validation, snapshot, train
from tests.conftest import context, parameters

CLASSES, EACH = 8, 8
SMALL: dict[str, Any] = {
    "model__width": 64, "model__depth": 2, "train__steps": 400, "train__batch_size": 64, "train__warmup_steps": 20,
    "train__ema_decay": 0.98, "train__compile": False, "train__precision": "float32", "train__validate_every": 400,
    "train__snapshots": [1], "runtime__progress": False,
}  # fmt: skip


def params(**changes: Any) -> Params:
    return parameters(**SMALL | changes)


def points() -> tuple[Latents, Tensor]:
    """64 latents, eight round each of eight centres, and the centres."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 4, 4, 4, generator=g)
    labels = torch.arange(CLASSES * EACH) % CLASSES
    x = centres[labels] + 0.2 * torch.randn(len(labels), 4, 4, 4, generator=g)
    return Latents(x, torch.zeros_like(x), labels), centres


def fit(p: Params, data: Latents) -> Result:
    torch.manual_seed(0)
    model = Transformer(4, 4, **p.model.model_dump(exclude={"labels"}), classes=CLASSES)
    return train(context("train", p), model, data, data)


def sampled(p: Params, model: Transformer, labels: Tensor) -> Tensor:
    path = make_path(p.flow.path, p.flow.sigma_min)
    velocity = guided(as_velocity(model, path, p.flow.prediction), labels, model.null_label)
    x0 = random.normal_rows(0, "test", range(len(labels)), (4, 4, 4))
    end = last_time(path, divides_by_sigma=p.flow.prediction == "data")
    with torch.no_grad():
        return integrate(velocity, x0, time_grid(20, end=end), "midpoint").x[-1]


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(x.flatten(1), centres.flatten(1)).argmin(1)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "modern": {"model__block": "modern"},
    "gvp": {"flow__path": "gvp"},
    # Its velocities are several times as large, so it takes longer: 1.32 after 400 steps, 0.86 after 1,200.
    "vp": {"flow__path": "vp", "train__steps": 1200},
    "data": {"flow__prediction": "data"},
    "optimal_transport": {"flow__coupling": "ot"},
    "logit_normal": {"flow__times": "logit_normal"},
    "constant, no clipping": {"train__schedule": "constant", "train__gradient_clip": None},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_sixty_four_latents_are_learned_with_their_labels(changes: dict[str, Any]) -> None:
    p = params(**changes)
    data, centres = points()
    labels = torch.arange(200) % CLASSES
    x = sampled(p, fit(p, data).model, labels)
    assert (nearest(x, centres) == labels).float().mean() > 0.95
    # Centres are about √(2 · 64) = 11 apart and their points √64 · 0.2 = 1.6 from them.
    distance = torch.cdist(x.flatten(1), data.mean.flatten(1)).min(1).values
    assert distance.median() < 11 / 4


def test_labels_that_are_shuffled_carry_no_information() -> None:
    p, (data, centres) = params(), points()
    # Of each centre's eight points one gets each label: a label says nothing about the centre.
    shuffled = replace(data, labels=torch.arange(CLASSES * EACH) // EACH)
    labels = torch.arange(400) % CLASSES
    right = (nearest(sampled(p, fit(p, shuffled).model, labels), centres) == labels).float().mean().item()
    assert right == pytest.approx(1 / CLASSES, abs=4 * (1 / 8 * 7 / 8 / len(labels)) ** 0.5)


def test_the_validation_loss_is_of_the_velocity_whatever_is_predicted() -> None:
    """Comparable between predictions: on the same data both come down to about the same."""
    data, _ = points()
    losses = {
        name: fit(params(flow__prediction=name, flow__sigma_min=0.1), data).validation[-1][1]
        for name in ("velocity", "data")
    }
    zero = 1.0 + data.mean.square().mean().item()  # a model that says 0
    assert losses["velocity"] < zero / 3 and losses["data"] < zero / 3


@pytest.mark.parametrize("path", ["cond_ot", "vp"])
def test_snapshots_are_the_midpoint_rule_of_the_sampling_room(path: str) -> None:
    """`train` writes its integration out, so that editing the sampler never retrains: the same floats all the same."""
    p = params(flow__path=path, train__seed=3)
    torch.manual_seed(0)
    model = Transformer(4, 4, **p.model.model_dump(exclude={"labels"}), classes=CLASSES).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    flow = make_path(path, p.flow.sigma_min)
    end, shape = last_time(flow, divides_by_sigma=False), torch.Size((4, 4, 4))
    x0 = random.normal_rows(3, "snapshot", range(SNAPSHOT_NOISES), shape)
    y = torch.arange(SNAPSHOT_NOISES) % CLASSES
    with torch.no_grad():
        expected = integrate(lambda t, x: model(t, x, y), x0, time_grid(SNAPSHOT_STEPS, end=end), "midpoint").x[-1]
    assert torch.equal(snapshot(model, model, end, shape, p.train), expected)


COMPILERS = {
    "a header is missing": ("echo 'In file included from a.cpp:1:' >&2; echo 'a.h:3:10: fatal error: Python.h: none' >&2; exit 1",
                            "a.h:3:10: fatal error: Python.h: none"),
    "a library is missing": ("echo '/bin/ld: cannot find -lgomp' >&2; echo 'collect2: error: ld returned 1' >&2; exit 1",
                             "/bin/ld: cannot find -lgomp"),
    "it is killed": ("kill -9 $$", "CppCompileError: C++ compile error"),
    "it is no compiler": (None, "InvalidCxxCompiler: No working C++ compiler found"),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPILERS)
def test_a_compiler_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    script, words = COMPILERS[case]
    compiler = tmp_path / "g++"
    if script:
        compiler.write_text(f'#!/bin/sh\ncase "$*" in *--version*) echo "g++ 13.0.0"; exit;; esac\n{script}\n')
        compiler.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    double = compiled(lambda x: (2 * x).sin(), "train", torch.device("cpu"))
    where = re.escape(tempfile.gettempdir())  # which disk, should it be full
    words = rf"^train\.compile is true, but compiling in {where} failed \({re.escape(words)}.*train\.compile: false$"
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}), pytest.raises(UserError, match=words):
        double(torch.ones(3, requires_grad=True))


def test_guidance_that_a_model_never_learnt_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"params": {"train": {"label_dropout": dropout}}} for dropout in (0, 0.1)]
    cases = [(records[0], 2.0, True), (records[0], 1.0, False), (records[1], 2.0, False), ({}, 2.0, False)]
    for record, scale, told in cases:
        (tmp_path / "record.json").write_text(json.dumps(record))
        check_guidance("distill", scale, True, tmp_path)
        assert ("distill: guidance_scale 2 needs a model" in capsys.readouterr().err) is told, (record, scale)
    check_guidance("sample", 1.0, False, tmp_path)
    with pytest.raises(UserError, match=r"sample\.guidance_scale 2 needs labels"):
        check_guidance("sample", 2.0, False, tmp_path)


def test_the_validation_loss_by_t_is_that_of_the_samples_whose_t_is_there() -> None:
    """A velocity of 0 has the loss E |x1 − (1 − σ) x0|² everywhere; one that is 2 where t ≥ 0.8 has 4 more there, on average."""
    p, (data, _) = params(flow__sigma_min=0.0), points()
    path = make_path("cond_ot", 0.0)
    validations = [
        Validation(lambda t, x, y, a=a: (a * (t >= 0.8).to(x)).view(-1, 1, 1, 1).expand_as(x), path, 1.0, p.train, data)
        for a in (0.0, 2.0)
    ]
    (mean, bins), (_, other) = (validation.loss() for validation in validations)
    counts = (validations[0].t * BINS).long().bincount(minlength=BINS)
    assert mean == pytest.approx((torch.tensor(bins) * counts).sum().item() / len(data), rel=1e-5)
    assert other[:-1] == bins[:-1]
    last = validations[0].t >= 0.8
    u = (validations[0].x1 - validations[0].x0)[last]
    assert other[-1] == pytest.approx((2 - u).square().mean().item(), rel=1e-5)


def test_a_live_table_grows_begins_anew_and_never_ends_a_stage(tmp_path: Path) -> None:
    path = tmp_path / "live/train.csv"
    Live(path, ("step", "loss"), [(1, 9.0)]).add((2, 8.0))
    assert path.read_text() == "step,loss\n1,9\n2,8\n"
    live = Live(path, ("step", "loss"), [])
    live.add((50, 1 / 3))
    assert path.read_text() == "step,loss\n50,0.333333\n"
    path.unlink()
    path.parent.rmdir()
    live.add((51, 1.0))
    path.parent.touch()
    Live(path, ("step", "loss"), []).add((1, 1.0))
    Live(None, ("step", "loss"), []).add((1, 1.0))


def test_on_a_pipe_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 10.0, 11.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Progress(9000, "train", "step", done=500) as progress:
        for _ in range(3):
            progress.advance(10, loss=0.5)
    assert capsys.readouterr().err == "train: step 520 of 9000, 2.00step/s, 1:10:40 left, loss 0.5\n"

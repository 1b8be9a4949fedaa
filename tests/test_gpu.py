"""What a GPU needs, held without one: no step and no evaluation makes the host wait, nothing mixes devices, draws made ahead
have the same bits, and Apple's GPU is given no float64."""

import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lfm import random
from lfm.evaluation.protocol import look
from lfm.flow.coupling import optimal_transport
from lfm.flow.path import LEAST_SIGMA, as_velocity, make_path
from lfm.nets.classifier import Classifier
from lfm.nets.flow_map import FlowMap
from lfm.nets.transformer import BLOCKS, Transformer
from lfm.precision import make_deterministic, resolve
from lfm.psnr import psnr
from lfm.sampling.guidance import Guidance, guided
from lfm.sampling.sampler import Sampler
from lfm.sampling.solver import FIXED_STEP, time_grid
from pipeline.artifacts.latents import Latents
from pipeline.errors import UserError
from pipeline.machine.device import device, machine
from pipeline.training.ahead import ahead
from pipeline.training.loop import compiled
from stages import distill, train
from tests.conftest import parameters
from tests.gpu import Pretended, Waits, pin

SHAPE = (4, 4, 4)


def transformer(block: str = "modern") -> Transformer:
    return Transformer(4, 4, 2, block, 32, 1, 2, 2, classes=10)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is pinned without a GPU."""
    monkeypatch.setattr(Tensor, "pin_memory", pin)


def backward(loss: Tensor) -> None:
    """In place of the backward pass, which needs a GPU: a gradient for each weight that the loss follows from."""
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            weight = getattr(node, "variable", None)
            if weight is not None:
                weight.grad = torch.empty_like(weight)
            nodes += [n for n, _ in node.next_functions]


@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("solver", [*FIXED_STEP, "euler_maruyama"])
def test_an_evaluation_waits_for_nothing(pinned: None, solver: str, prediction: str) -> None:
    """Guided within an interval, which asks for the time at each evaluation."""
    gpu, path = Pretended(), make_path("cond_ot", 1e-3)
    model = gpu.module(transformer().requires_grad_(False))
    x, y = gpu.tensor(torch.zeros(3, *SHAPE)), gpu.tensor(torch.zeros(3, dtype=torch.int64))
    velocity = as_velocity(model, path, prediction, LEAST_SIGMA)

    def noise(step: int) -> Tensor:
        return random.moved(random.normal(0, "noise", step, (3, *SHAPE)), gpu.device)

    with gpu.watched():
        v = guided(velocity, y, model.null_label, Guidance(3.0, (0.2, 0.6)))
        states = Sampler(solver)(v, path, x, time_grid(3), noise, [0, 2, 3]).x
    assert states.shape == (3, 3, *SHAPE) and states.device == gpu.device and states.dtype == torch.float32


def test_a_jump_of_the_flow_map_waits_for_nothing() -> None:
    gpu = Pretended()
    flow_map = gpu.module(FlowMap(4, **transformer().config).requires_grad_(False))
    x, y = gpu.tensor(torch.zeros(3, *SHAPE)), gpu.tensor(torch.zeros(3, dtype=torch.int64))
    with gpu.watched():
        assert flow_map.follow(x, y, time_grid(4)).device == gpu.device


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by copy.deepcopy
@pytest.mark.parametrize("block", BLOCKS)
def test_a_step_of_the_training_waits_for_nothing(pinned: None, monkeypatch: pytest.MonkeyPatch, block: str) -> None:
    """All of it but the backward pass, and the snapshots that are taken on the way."""
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(train, "SNAPSHOT_STEPS", 2)
    p, gpu = parameters("tiny", train__precision="float32"), Pretended()
    rows, labels = torch.zeros(40, *SHAPE), torch.zeros(40, dtype=torch.int64)
    data = Latents(*(gpu.tensor(x) for x in (rows, rows, labels)))
    model, path = gpu.module(transformer(block)), make_path("cond_ot", 1e-3)
    with gpu.watched():
        fit = train.begin(model, path, p.flow, p.train, gpu.device)
        drawn = [random.moved(x, gpu.device) for x in train.draws(p.flow, p.train, 1.0, data.shape, 0)]
        parts = train.batch(p.flow, p.train, 10, data.batch(0, 0, p.train.batch_size), *drawn)
        loss = train.update(fit, p.train, 0, *parts)
        assert loss.shape == () and loss.device == gpu.device
        assert len(fit.optimizer.state_dict()["state"]) == len([*model.parameters()])
        assert train.snapshot(model, model, 1.0, data.shape, p.train).device == gpu.device


def test_the_loss_of_the_flow_map_waits_for_nothing(pinned: None) -> None:
    p, gpu = parameters("tiny").distill, Pretended()
    flow_map = gpu.module(FlowMap(p.evaluations, **transformer().config))
    states, labels = torch.zeros(40, p.evaluations + 1, *SHAPE), torch.zeros(40, dtype=torch.int64)
    with gpu.watched():
        parts = [random.moved(x, gpu.device) for x in distill.batch(p, states, labels, 1.0, 0)]
        assert distill.jump_loss(flow_map, *parts).device == gpu.device


@pytest.mark.parametrize("act", [Tensor.item, float, bool, Tensor.cpu, lambda x: x + torch.ones(2), torch.nonzero])
def test_what_would_wait_is_seen(act: Any) -> None:
    gpu = Pretended()
    x = gpu.tensor(torch.zeros(()))
    raises: Any = (Waits, torch._subclasses.fake_tensor.DataDependentOutputException,
                   torch._subclasses.fake_tensor.DynamicOutputShapeException)  # fmt: skip
    with gpu.watched(), pytest.raises(raises):
        act(x)


def test_a_copy_to_the_gpu_that_would_wait_is_seen(pinned: None) -> None:
    gpu, x = Pretended(), torch.ones(3)
    with gpu.watched():
        assert x.pin_memory().to(gpu.device, non_blocking=True).device == gpu.device
        for copy in (
            lambda: x.to(gpu.device),
            lambda: x.to(gpu.device, non_blocking=True),
            lambda: pin(x).to(gpu.device),
        ):
            with pytest.raises(Waits):
                copy()


def test_kernels_are_launched_as_graphs_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | None] = []

    def compile(function: Any, dynamic: bool, mode: str | None) -> Any:
        modes.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    for name in ("cuda", "cpu", "mps"):
        assert compiled(lambda x: x + 1, "train", torch.device(name))(1) == 2
    assert modes == ["reduce-overhead", None, None]


# --- draws made ahead ------------------------------------------------------------------------------------------------


def test_draws_made_ahead_have_the_same_bits(pinned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of their own, one step ahead and no further, also where a training is resumed or goes back."""
    p, asked = parameters("tiny"), list[tuple[int, str]]()

    def make(step: int) -> tuple[Tensor, ...]:
        asked.append((step, threading.current_thread().name))
        return train.draws(p.flow, p.train, 1.0, torch.Size(SHAPE), step)

    monkeypatch.setattr(random, "moved", lambda x, device: x)
    drawn = ahead(make, torch.device("cuda"))
    for step in (0, 1, 2, 7, 8, 3):
        assert all(torch.equal(a, b) for a, b in zip(drawn(step), make(step), strict=True))
        assert all(x.pinned for x in drawn(step))  # type: ignore[attr-defined]
    made = {step for step, thread in asked if thread.startswith("ahead")}
    assert made == {0, 1, 2, 3, 4, 7, 8, 9}


def test_what_fails_ahead_fails_the_step(pinned: None) -> None:
    def make(step: int) -> tuple[Tensor, ...]:
        raise UserError(f"step {step}")

    with pytest.raises(UserError, match="step 5"):
        ahead(make, torch.device("cuda"))(5)


# --- Apple's GPU -----------------------------------------------------------------------------------------------------


def test_apples_gpu_gets_no_float64() -> None:
    gpu = Pretended()
    x, y = gpu.tensor(torch.zeros(6, *SHAPE)), gpu.tensor(torch.zeros(6, dtype=torch.int64))
    classifier = gpu.module(Classifier(1, 10, "pooled", (28, 28)).eval().requires_grad_(False))
    with gpu.watched(may_wait=True):
        with pytest.raises(TypeError, match="float64"):
            x.double()
        assert optimal_transport(x, x, y).device == gpu.device
        assert psnr(x, x) == np.inf
        outside_inference_mode: Any = look.__wrapped__  # type: ignore[attr-defined]
        seen = outside_inference_mode(classifier, np.zeros((2, 1, 28, 28), np.uint8), np.zeros(2))
    assert seen.features.shape == (2, 128) and seen.features.dtype == np.float64


def test_apples_gpu_is_a_device_that_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFM_DEVICE", "mps")
    assert machine()["device"] == "mps"
    assert machine()["auto precision"] == resolve("auto", torch.device("mps")) == "float32"
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match=r"^LFM_DEVICE: 'mps' can't be used here"):
            device()
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert device() == torch.device("mps")


def test_what_is_not_deterministic_there_is_named_once(recwarn: pytest.WarningsRecorder) -> None:
    x, place = torch.zeros(3), torch.tensor([0])
    try:
        with warnings.catch_warnings(record=True) as said:
            make_deterministic(torch.device("mps"))
            x.put_(place, torch.ones(1))
            x.put_(place, torch.ones(1))
        assert len(said) == 1 and "put_" in str(said[0].message)
        make_deterministic(torch.device("cpu"))
        with pytest.raises(RuntimeError, match="put_"):
            x.put_(place, torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)

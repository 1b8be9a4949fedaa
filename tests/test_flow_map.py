"""The flow map: what it begins as, what it is fitted to, and how a model samples with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lfm import ConfigError, LatentFlow, Sampler
from lfm.nets.flow_map import FlowMap
from lfm.nets.transformer import Transformer
from stages.distill import batch, jump_loss, jumps
from tests.conftest import parameters

FLOW = {
    "path": "cond_ot", "sigma_min": 0.0, "prediction": "velocity", "scale_mean": [0.0, 0.0], "scale_std": [1.0, 1.0],
    "image_channels": 1, "image_height": 28, "image_width": 28, "autoencoder_sha256": "",
}  # fmt: skip


def velocity(classes: int = 10, channels: int = 2) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(channels, 4, 2, "modern", 16, 1, 2, 2, classes)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    return model.eval()


def trained(model: Transformer, evaluations: int = 4) -> FlowMap:
    """One whose jumps matter."""
    flow_map = FlowMap.from_velocity(model, evaluations)
    for weight in flow_map.jump.parameters():
        nn.init.normal_(weight, std=0.2)
    return flow_map


@pytest.fixture(scope="module")
def model() -> LatentFlow:
    flow = velocity()
    return LatentFlow(flow, FLOW, Sampler("euler", steps=3, guidance_scale=2.0), None, trained(flow))


def latents(model: LatentFlow, *args: Any, **options: Any) -> Tensor:
    images = model.sample(*args, output_type="latent", **options).images
    assert isinstance(images, Tensor)
    return images


@pytest.mark.parametrize("classes", [0, 10])
def test_it_begins_as_the_velocity_whatever_the_jump(classes: int) -> None:
    flow, x, y = velocity(classes), torch.randn(3, 2, 4, 4), torch.tensor([0, 1, 2])
    s = torch.tensor([0.0, 0.25, 0.5])
    for t in (s + 0.25, torch.tensor(1.0)):
        torch.testing.assert_close(FlowMap.from_velocity(flow, 4)(s, t, x, y), flow(s, x, y), rtol=0, atol=0)


def test_what_it_has_learnt_depends_on_both_ends_of_the_jump() -> None:
    flow_map, x, y = trained(velocity()), torch.randn(1, 2, 4, 4), torch.tensor([3])
    said = [flow_map(torch.tensor(s), torch.tensor(t), x, y) for s, t in ((0.0, 0.5), (0.0, 1.0), (0.5, 1.0))]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in ((said[0], said[1]), (said[1], said[2])))


@pytest.mark.parametrize("evaluations", [1, 2, 4, 8])
def test_every_jump_of_sampling_is_trained_and_half_of_them_are_the_longest(evaluations: int) -> None:
    shares = {(s, t): share for s, t, share in jumps(evaluations)}
    steps = [n for n in (1, 2, 4, 8) if n <= evaluations]
    assert {*shares} == {(i / n, (i + 1) / n) for n in steps for i in range(n)}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[0, 1] == (1 if evaluations == 1 else 0.5)


def test_a_batch_holds_states_of_one_trajectory_at_the_ends_of_a_jump() -> None:
    """Trajectories whose states are 20 · pair + place: each pair of states says which jump of which trajectory it is."""
    p = parameters("tiny", distill__batch_size=4000, distill__evaluations=4).distill
    place = torch.arange(5.0).expand(50, 5)
    states = (20 * torch.arange(50.0)[:, None] + place)[..., None, None, None].half()
    x_s, x_t, s, t, y = batch(p, states, torch.arange(50), 1.0, 0)
    torch.testing.assert_close(x_s.flatten(), 20.0 * y + 4 * s)
    torch.testing.assert_close(x_t.flatten(), 20.0 * y + 4 * t)
    for start, end, share in jumps(4):  # within five standard errors of a share among 4,000
        found = ((s == start) & (t == end)).double().mean().item()
        assert found == pytest.approx(share, abs=5 * (share * (1 - share) / 4000) ** 0.5)


def test_the_loss_is_the_squared_error_of_the_average_velocity() -> None:
    s, t, y = torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.75]), torch.tensor([0, 1])
    x_s, v = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    x_t = x_s + (t - s)[:, None, None, None] * v
    off = torch.tensor([0.5, 1.5])[:, None, None, None]
    assert jump_loss(lambda s, t, x, y: v, x_s, x_t, s, t, y).item() == pytest.approx(0, abs=1e-10)  # type: ignore[arg-type]
    assert jump_loss(lambda s, t, x, y: v + off, x_s, x_t, s, t, y).item() == pytest.approx(1.25, rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_two_or_four_steps_jump(model: LatentFlow, steps: int) -> None:
    labels, flow_map = [3, 1], model.flow_map
    assert flow_map is not None
    drawn = model.sample(labels, seed=0, steps=steps, batch_size=2, output_type="latent")
    x = latents(model, labels, seed=0, steps=steps, batch_size=2, return_path=[0])
    assert drawn.nfe == steps
    noise = model.sample(labels, seed=0, steps=steps, batch_size=2, return_path=[0], output_type="latent").path
    assert noise is not None
    state = noise[0]
    assert isinstance(state, Tensor)
    for i in range(steps):
        s, t = torch.tensor(i / steps), torch.tensor((i + 1) / steps)
        state = state + (t - s) * flow_map(s, t, state, torch.tensor(labels))
    torch.testing.assert_close(x, state)


def test_who_names_a_solver_or_guidance_integrates_the_flow(model: LatentFlow) -> None:
    kinds: list[dict[str, Any]] = [{"steps": 4, "solver": "euler"}, {"steps": 4, "guidance_scale": 1.0}, {"steps": 3}]
    for options in kinds:
        nfe = model.sample([3], seed=0, batch_size=1, output_type="latent", **options).nfe
        assert nfe == options["steps"] * (1 if options.get("guidance_scale") == 1 else 2)
    assert model.sample([3], seed=0, batch_size=1, output_type="latent", solver="flow_map").nfe == 4


def test_without_a_flow_map_few_steps_are_the_solvers(model: LatentFlow) -> None:
    plain = LatentFlow(model.transformer, FLOW, model.sampler)
    assert plain.sample([3], seed=0, steps=4, batch_size=1, output_type="latent").nfe == 8
    with pytest.raises(ConfigError, match="solver is 'flow_map', and this model has none"):
        plain.sample([3], solver="flow_map", output_type="latent")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 3}, "steps is 3"), ({"guidance_scale": 2.0}, "guidance_scale is 2"),
     ({"sampler": Sampler("flow_map", steps=2, time_shift=2.0)}, "time_shift is 2")],
)  # fmt: skip
def test_what_a_flow_map_cannot_do_is_named(model: LatentFlow, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.sample([3], solver="flow_map", output_type="latent", **options)


def test_it_is_saved_with_the_model_and_must_fit_it(model: LatentFlow, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = LatentFlow.from_pretrained(tmp_path)
    options: dict[str, Any] = {"seed": 0, "steps": 2, "batch_size": 2}
    assert torch.equal(latents(again, [3, 1], **options), latents(model, [3, 1], **options))
    LatentFlow(model.transformer, FLOW).save_pretrained(tmp_path)
    assert LatentFlow.from_pretrained(tmp_path).flow_map is None  # that of the other model is gone
    with pytest.raises(ConfigError, match="flow_map"):
        LatentFlow(velocity(classes=5), FLOW, None, None, trained(velocity()))
    for wrong in (0, 3, 32, "4"):
        with pytest.raises(ConfigError, match="evaluations"):
            FlowMap(wrong, **velocity().config)  # type: ignore[arg-type]


def test_a_row_jumps_alike_whoever_stands_beside_it(model: LatentFlow) -> None:
    many = latents(model, [3, 1, 4, 1], seed=0, steps=4, batch_size=4)
    few = latents(model, [4], seed=0, rows=np.array([2]), steps=4, batch_size=4)
    assert torch.equal(few[0], many[2])

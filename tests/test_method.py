"""Losses, guidance, averages, schedules, the transformer and the draws, against what is known of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from lfm import random
from lfm.errors import ConfigError
from lfm.flow.ema import EMA, decay_at
from lfm.flow.loss import WEIGHTINGS, cfm_loss, drop_labels, loss_per_sample
from lfm.flow.path import PATHS, Velocity, as_velocity, cond_ot, make_path
from lfm.flow.schedule import warmup_constant, warmup_cosine
from lfm.nets.augment import shifted
from lfm.nets.latents import LatentScale, draw
from lfm.nets.transformer import BLOCKS, ModernBlock, Transformer, positions, time_features
from lfm.sampling.guidance import Guidance, guided
from lfm.sampling.solver import FIXED_STEP, integrate, time_grid

SIGMA_MIN = 1e-3


def transformer(dtype: torch.dtype = torch.float32, block: str = "dit") -> Transformer:
    """A small model whose weights are all random: as initialised it would be zero everywhere."""
    torch.manual_seed(0)
    model = Transformer(4, 4, patch_size=2, block=block, width=32, depth=2, heads=2, mlp_ratio=2, classes=10)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    return model.to(dtype)


# --- the loss of models that are known ---------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
def test_a_fresh_model_predicts_zero_and_its_loss_is_known(block: str) -> None:
    model = Transformer(4, 4, patch_size=1, block=block, width=32, depth=2, heads=2, mlp_ratio=2, classes=10)
    n = 4096
    x0, x1 = torch.randn(2, n, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t, y = torch.rand(n), torch.randint(0, 11, (n,))
    assert model(t, x1, y).abs().max() == 0
    loss = cfm_loss(model, make_path("cond_ot", SIGMA_MIN), x0, x1, t, y).item()
    # u² of a normal u has variance 2 Var(u)²; four standard errors of its mean over n · 64 values.
    expected = 1 + (1 - SIGMA_MIN) ** 2
    assert loss == pytest.approx(expected, abs=4 * math.sqrt(2) * expected / math.sqrt(n * 64))


def test_the_optimal_velocity_of_a_finite_data_set_returns_its_points_with_their_labels() -> None:
    sigma_min, per_class, classes, dimensions = 0.01, 3, 4, 4
    g = torch.Generator().manual_seed(1)
    points = torch.randn(classes * per_class, dimensions, generator=g, dtype=torch.float64)
    labels = torch.arange(len(points)) % classes

    def model(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The optimal velocity: a softmax over the points of the label (over all of them for the null label)."""
        path = cond_ot(t, sigma_min)
        offset = x[:, None] - path.alpha * points  # (B, K, D)
        allowed = (labels == y[:, None]) | (y[:, None] == classes)
        logits = (-0.5 * offset.square().sum(-1) / path.sigma**2).masked_fill(~allowed, -torch.inf)
        u = path.d_alpha * points + path.d_sigma * offset / path.sigma
        return (logits.softmax(-1)[..., None] * u).sum(1)

    y = torch.arange(400) % classes
    x0 = torch.randn(len(y), dimensions, generator=g, dtype=torch.float64)
    end = integrate(guided(model, y, classes), x0, time_grid(400), "rk4").x[-1]
    distance, nearest = torch.cdist(end, points).min(1)
    # What remains is σ_min · x0, up to the deflection by the other points: |x0| < 5 here, checked first.
    assert x0.norm(dim=1).max() < 5
    assert distance.max() < 5 * sigma_min
    assert torch.equal(labels[nearest], y)
    assert set(nearest.tolist()) == set(range(len(points)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_the_loss_is_the_mean_over_samples_weighted_by_the_squared_noise(path: str, prediction: str) -> None:
    model, flow, n = transformer(torch.float64), make_path(path, SIGMA_MIN), 16
    g = torch.Generator().manual_seed(2)
    x0, x1 = torch.randn(2, n, 4, 4, 4, generator=g, dtype=torch.float64)
    t, y = torch.rand(n, generator=g, dtype=torch.float64), torch.arange(n) % 10
    each = loss_per_sample(model, flow, x0, x1, t, y, prediction)
    plain = cfm_loss(model, flow, x0, x1, t, y, prediction)
    assert each.shape == (n,)
    torch.testing.assert_close(each.mean(), plain, rtol=1e-12, atol=0)
    assert torch.equal(cfm_loss(model, flow, x0, x1, t, y, prediction, WEIGHTINGS["uniform"]), plain)
    weighted = cfm_loss(model, flow, x0, x1, t, y, prediction, WEIGHTINGS["noise"])
    torch.testing.assert_close(weighted, (flow(t).sigma ** 2 * each).mean(), rtol=1e-12, atol=0)


def test_the_velocity_loss_weighted_by_noise_is_the_error_of_the_data_on_the_straight_path() -> None:
    """σ (v − u) = D − x1 where σ_min = 0, for v that follows from a prediction D of the data."""
    flow, g = make_path("cond_ot", 0.0), torch.Generator().manual_seed(3)
    x0, x1, wrong = torch.randn(3, 8, 5, generator=g, dtype=torch.float64)
    t, y = 0.99 * torch.rand(8, generator=g, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    velocity = as_velocity(lambda t, x, y: wrong, flow, "data")
    weighted = cfm_loss(velocity, flow, x0, x1, t, y, weighting=WEIGHTINGS["noise"])
    torch.testing.assert_close(weighted, (wrong - x1).square().mean(), rtol=1e-9, atol=0)


# --- times, guidance, averages ---------------------------------------------------------------------------------------


def test_guidance_is_linear_from_the_unconditional_to_the_conditional_model() -> None:
    model, y = transformer(torch.float64), torch.arange(6)
    x, t = torch.randn(6, 4, 4, 4, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    null = torch.full_like(y, model.null_label)
    conditional, unconditional = model(t, x, y), model(t, x, null)
    assert torch.equal(guided(model, y, model.null_label)(t, x), conditional)
    assert torch.equal(guided(model, y, model.null_label, Guidance(0.0))(t, x), unconditional)
    for scale in (0.25, 0.5, 3.0):
        mixed = guided(model, y, model.null_label, Guidance(scale))(t, x)
        expected = (1 - scale) * unconditional + scale * conditional
        torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)
        assert ((mixed - conditional).abs().amax(dim=(0, 2, 3)) > 1e-3).all(), "every channel moves"


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 5), (1.0, 5), (2.0, 10)])
def test_guidance_takes_a_second_pass_only_where_it_must(scale: float, rows: int) -> None:
    seen = []

    def model(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    guided(model, torch.zeros(5, dtype=torch.int64), 10, Guidance(scale))(torch.tensor(0.0), torch.zeros(5, 1))
    assert seen == [rows]


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_an_interval_that_ends_on_the_grid_guides_at_both_ends_in_float32(solver: str) -> None:
    """Times in float32 lie next to 0.7 and 0.8 as float64 has them; euler's ten steps begin at both."""
    guided_at: list[float] = []

    def model(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if len(x) == 2:
            guided_at.append(round(float(t), 4))
        return x

    integrate(
        guided(model, torch.zeros(1, dtype=torch.int64), 10, Guidance(3.0, (0.7, 0.8))),
        torch.ones(1, 1),
        time_grid(10),
        solver,
    )
    inside = {"euler": [0.7, 0.8], "midpoint": [0.7, 0.75, 0.8], "heun": [0.7, 0.7, 0.8, 0.8], "rk4": None}[solver]
    assert guided_at == inside if inside else {0.7, 0.8} < set(guided_at)


@pytest.mark.parametrize(("t", "rows"), [(0.1, 5), (0.2, 10), (0.5, 10), (0.6, 10), (0.7, 5)])
def test_guidance_acts_within_its_interval_alone(t: float, rows: int) -> None:
    seen = []

    def model(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return y[:, None].to(x)

    v = guided(model, torch.ones(5, dtype=torch.int64), 10, Guidance(3.0, (0.2, 0.6)))(
        torch.tensor(t, dtype=torch.float64), torch.zeros(5, 1)
    )
    assert seen == [rows]
    assert (v == (1 if rows == 5 else 10 + 3 * (1 - 10))).all()


def test_autoguidance_moves_away_from_the_weak_model_and_adds_to_guidance() -> None:
    """v(∅) + s (v(y) − v(∅)) + (w − 1) (v(y) − v_weak(y)), with a pass of the weak model where w counts alone."""
    passes: list[str] = []

    def named(name: str, value: float) -> Velocity:
        def velocity(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
            passes.extend([name] * len(x))
            return value * (1 + y[:, None].to(x))  # null label 9: 10 · value

        return velocity

    y, x = torch.tensor([4]), torch.zeros(1, 1)
    good, weak = named("good", 3.0), named("weak", 2.0)
    velocity = guided(good, y, 9, Guidance(2.0, (0.6, 1)), weak, Guidance(2.5, (0, 0.7)))

    def found(t: float) -> tuple[float, list[str]]:
        passes.clear()
        return float(velocity(torch.tensor(t), x)), passes

    assert found(0.0) == (15 + 1.5 * (15 - 10), ["good", "weak"])
    assert found(0.65) == (30 + 2 * (15 - 30) + 1.5 * (15 - 10), ["good", "good", "weak"])
    assert found(0.9) == (30 + 2 * (15 - 30), ["good", "good"])
    unconditional = guided(good, y, 9, Guidance(0.0), weak, Guidance(3.0))
    assert float(unconditional(torch.tensor(0.5), x)) == 30 + 2 * (15 - 10)


def test_labels_are_dropped_one_by_one() -> None:
    y, u = torch.arange(8), torch.tensor([0.0, 0.09, 0.1, 0.5, 0.99, 0.05, 0.2, 0.3])
    assert drop_labels(y, u, 0.1, 10).tolist() == [10, 10, 2, 3, 4, 10, 6, 7]
    assert torch.equal(drop_labels(y, u, 0.0, 10), y)


def test_the_moving_average_of_constants_and_towards_a_constant() -> None:
    model = nn.BatchNorm1d(3).double()
    nn.init.normal_(model.weight)
    ema = EMA(model)
    ema.update(model, 0.9)
    assert torch.equal(ema.average.weight, model.weight), "constants are a fixed point"
    start, decay, n = model.weight.detach().clone(), 0.9, 25
    nn.init.normal_(model.weight)
    model.running_mean = torch.full((3,), 7.0, dtype=torch.float64)
    for _ in range(n):
        ema.update(model, decay)
    expected = decay**n * start + (1 - decay**n) * model.weight
    torch.testing.assert_close(ema.average.weight.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
    assert ema.average.running_mean is not None
    assert torch.equal(ema.average.running_mean, torch.full((3,), 7.0, dtype=torch.float64)), "buffers are copied"
    assert [decay_at(n, 0.999) for n in (0, 8, 10**6)] == [0.1, 0.5, 0.999]


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5) and 0 < factors[99] < 0.001
    assert sorted(factors[10:], reverse=True) == factors[10:]
    assert [warmup_constant(step, 100, 10) for step in (0, 9, 50, 99)] == [0.1, 1, 1, 1]
    assert warmup_constant(0, 100, 0) == warmup_cosine(0, 100, 0) == 1


def test_latents_are_normalised_and_restored() -> None:
    scale = LatentScale(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]))
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(scale.restore(scale.normalise(x)), x)
    assert torch.equal(scale.normalise(scale.mean[None, :, None, None]), torch.zeros(1, 2, 1, 1))
    assert torch.equal(draw(x, torch.zeros_like(x), torch.randn_like(x)), x)


def test_images_are_moved_by_whole_pixels_each_move_equally_often() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    every = torch.cartesian_prod(
        *[(torch.arange(3) + 0.5) / 3] * 2
    )  # the middle of each bin: −1, 0 or 1 down and right
    moved = shifted(image.expand(9, 2, -1, -1), every, 1)
    assert moved.shape == (9, 2, 3, 4) and torch.equal(moved[:, 0], moved[:, 1])
    assert torch.equal(moved[4], image[0].expand(2, -1, -1))
    assert moved[5, 0].tolist() == [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]  # to the right
    assert moved[1, 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]  # up
    assert len({tuple(m.flatten().tolist()) for m in moved}) == 9
    assert torch.equal(shifted(image, torch.tensor([[0.0, 1 - 2**-24]]), 0), image)


# --- transformer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
def test_a_sample_does_not_depend_on_its_batch_mates(block: str) -> None:
    model = transformer(torch.float64, block)
    x0, y = random.normal_rows(0, "sample", range(6), (4, 4, 4)).double(), torch.arange(6)
    together = integrate(guided(model, y, 10, Guidance(2.0)), x0, time_grid(5), "midpoint").x[-1]
    for i in range(6):
        alone = integrate(guided(model, y[i : i + 1], 10, Guidance(2.0)), x0[i : i + 1], time_grid(5), "midpoint").x[-1]
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-10)


def test_time_features_tell_times_apart() -> None:
    features = time_features(torch.linspace(0, 1, 256))
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum()
    effective_rank = torch.exp(-(share * share.log()).sum())
    assert effective_rank > 30  # unscaled it is 1.05


@pytest.mark.parametrize("block", BLOCKS)
def test_tokens_know_where_they_are(block: str) -> None:
    table = positions(4, 32)
    assert len({tuple(row.tolist()) for row in table}) == 16
    model = transformer(torch.float64, block)
    x, y, t = torch.randn(1, 4, 4, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), torch.tensor(0.5)
    turned = model(t, x.rot90(1, (2, 3)), y).rot90(-1, (2, 3))
    assert (turned - model(t, x, y)).abs().max() > 1e-3


def test_rotary_attention_depends_on_distances_alone() -> None:
    """Queries and keys that are the same at every place score the same at the same distance, in both directions."""
    block: ModernBlock = ModernBlock(32, 2, 2, side=3).double()
    q, k = torch.randn(2, 1, 2, 1, 16, dtype=torch.float64).expand(2, 1, 2, 9, 16)
    scores = (block.turn(q) @ block.turn(k).transpose(-2, -1))[0, 0].unflatten(0, (3, 3)).unflatten(2, (3, 3))
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[1, 0, 2, 2])  # both: one row down, two columns right
    torch.testing.assert_close(scores[2, 1, 0, 0], scores[2, 2, 0, 1])
    assert not torch.isclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])


def test_a_model_without_labels_takes_no_notice_of_them() -> None:
    model = Transformer(4, 4, 2, "dit", 32, 1, 2, 2, classes=0)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    t, x = torch.rand(3), torch.randn(3, 4, 4, 4)
    assert torch.equal(model(t, x, torch.tensor([0, 1, 2])), model(t, x, torch.tensor([5, 5, 5])))


def test_the_seeds_transformer_has_exactly_its_weights() -> None:
    """DiT-B/2 on latents of 4×4×4 without labels, counting its frozen positions."""
    with torch.device("meta"):
        model = Transformer(4, 4, patch_size=2, block="dit", width=768, depth=12, heads=12, mlp_ratio=4, classes=0)
    assert sum(w.numel() for w in model.parameters()) + model.positions.numel() == 129_537_808


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_every_patch_size_that_divides_works(patch_size: int, block: str) -> None:
    model = Transformer(4, 4, patch_size, block, 32, 1, 2, 2, 10)
    assert model(torch.rand(3), torch.randn(3, 4, 4, 4), torch.arange(3)).shape == (3, 4, 4, 4)


def test_a_patch_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.patch_size is 3.*\[1, 2, 4\]"):
        Transformer(4, 4, 3, "dit", 32, 1, 2, 2, 10)
    with pytest.raises(ConfigError, match=r"model\.width is 36.*modern.*24"):
        Transformer(4, 4, 2, "modern", 36, 1, 6, 2, 10)


# --- randomness ------------------------------------------------------------------------------------------------------


def test_draws_are_functions_of_seed_stream_and_index_alone() -> None:
    a = random.normal(0, "x0", 5, (3, 2))
    random.normal(0, "x0", 6, (100,))
    assert torch.equal(a, random.normal(0, "x0", 5, (3, 2)))
    for other in ((1, "x0", 5), (0, "posterior", 5), (0, "x0", 6)):
        assert not torch.equal(a, random.normal(*other, (3, 2)))
    rows = random.normal_rows(0, "sample", [3, 1, 7], (2,))
    assert torch.equal(rows[1], random.normal_rows(0, "sample", [1], (2,))[0])

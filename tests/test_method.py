"""The method against closed forms; the numbers are those of the list in the design (form 1, 2, 4 …)."""

import math

import pytest
import torch
from torch import Tensor, nn

from lfm.ema import EMA, decay_at
from lfm.errors import ConfigError
from lfm.guidance import drop_labels, guided
from lfm.latents import LatentScale, draw
from lfm.path import cfm_loss, cond_ot, interpolate
from lfm.schedule import warmup_cosine
from lfm.solver import SOLVERS, integrate, uniform_grid
from lfm.times import stratified
from lfm.transformer import Transformer, positions, time_features
from pipeline import random
from tests.gaussians import MEANS, STDS, WEIGHTS, mixture_velocity

SIGMA_MIN = 1e-3


def transformer(dtype: torch.dtype = torch.float32) -> Transformer:
    """A small model whose weights are all random: as initialised it would be zero everywhere."""
    torch.manual_seed(0)
    model = Transformer(channels=4, size=4, patch_size=2, width=32, depth=2, heads=2, mlp_ratio=2, classes=10)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    return model.to(dtype)


# --- path and loss ---------------------------------------------------------------------------------------------------


def test_path_runs_from_noise_to_data_and_u_is_its_derivative() -> None:
    x0, x1 = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.linspace(0, 1, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(interpolate(x0, x1, torch.zeros(5), SIGMA_MIN)[0], x0)
    end = interpolate(x0, x1, torch.ones(5, dtype=torch.float64), SIGMA_MIN)[0]
    torch.testing.assert_close(end, x1 + SIGMA_MIN * x0, rtol=0, atol=1e-15)
    for i in range(3):
        x_t, u_t = interpolate(x0, x1, t, SIGMA_MIN)
        (derivative,) = torch.autograd.grad(x_t[:, i].sum(), t)
        torch.testing.assert_close(derivative, u_t[:, i].detach(), rtol=1e-12, atol=1e-12)


def test_form_1_a_gaussian_is_reached_by_its_exact_map() -> None:
    m, s, sigma_min = 0.7, 0.3, 0.01
    x0 = torch.linspace(-3, 3, 13, dtype=torch.float64)
    velocity = mixture_velocity((m,), (s,), (1.0,), sigma_min)
    coarse, fine = (integrate(velocity, x0, uniform_grid(n), "rk4").x[-1] for n in (128, 256))
    error = (fine - (m + math.sqrt(s**2 + sigma_min**2) * x0)).abs().max()
    # Of order 4 or more, so the finer solution's error is at most 1/15 of its distance to the coarser one.
    assert error <= (coarse - fine).abs().max() / 15 * 1.1


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_form_2_each_solver_has_its_order_on_a_mixture(solver: str, order: int) -> None:
    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)
    velocity = mixture_velocity(MEANS, STDS, WEIGHTS, 0.0)
    exact = integrate(velocity, x0, uniform_grid(2048), "rk4").x[-1]
    errors = [(integrate(velocity, x0, uniform_grid(n), solver).x[-1] - exact).norm() for n in (128, 256)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("solver", "stages"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_steps_mean_steps_and_evaluations_are_counted(solver: str, stages: int) -> None:
    seen: list[float] = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        seen.append(float(t))
        return torch.ones_like(x)

    solution = integrate(velocity, torch.zeros(2), uniform_grid(7), solver)
    assert solution.nfe == len(seen) == 7 * stages
    torch.testing.assert_close(solution.x[-1], torch.ones(2))
    assert sorted(SOLVERS) == ["euler", "heun", "midpoint", "rk4"]


def test_states_on_the_way_are_those_of_the_grid() -> None:
    solution = integrate(lambda t, x: torch.ones_like(x), torch.zeros(1), uniform_grid(10), "euler", at=[0, 3, 10])
    torch.testing.assert_close(solution.x[:, 0], torch.tensor([0.0, 0.3, 1.0]))
    assert solution.nfe == 10


def test_form_5_there_and_back_falls_with_order_4() -> None:
    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)
    velocity = mixture_velocity(MEANS, STDS, WEIGHTS, 0.0)
    errors = []
    for n in (64, 128):
        there = integrate(velocity, x0, uniform_grid(n), "rk4").x[-1]
        errors.append((integrate(velocity, there, uniform_grid(n).flip(0), "rk4").x[-1] - x0).norm())
    # The leading error terms there and back cancel in part, so the fall is at least that of order 4.
    assert math.log2(errors[0] / errors[1]) > 4 - 0.1


def test_form_4_a_fresh_model_predicts_zero_and_its_loss_is_known() -> None:
    model = Transformer(channels=4, size=4, patch_size=1, width=32, depth=2, heads=2, mlp_ratio=2, classes=10)
    n = 4096
    x0, x1 = torch.randn(2, n, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t, y = torch.rand(n), torch.randint(0, 11, (n,))
    assert model(t, x1, y).abs().max() == 0
    loss = cfm_loss(model, x0, x1, t, y, SIGMA_MIN).item()
    # u² of a normal u has variance 2 Var(u)²; four standard errors of its mean over n · 64 values.
    expected = 1 + (1 - SIGMA_MIN) ** 2
    assert loss == pytest.approx(expected, abs=4 * math.sqrt(2) * expected / math.sqrt(n * 64))


def test_form_6_a_finite_data_set_is_returned_each_point_with_its_label() -> None:
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
    end = integrate(guided(model, y, 1.0, classes), x0, uniform_grid(400), "rk4").x[-1]
    distance, nearest = torch.cdist(end, points).min(1)
    # What remains is σ_min · x0, up to the deflection by the other points: |x0| < 5 here, checked first.
    assert x0.norm(dim=1).max() < 5
    assert distance.max() < 5 * sigma_min
    assert torch.equal(labels[nearest], y)
    assert set(nearest.tolist()) == set(range(len(points)))


# --- times, guidance, averages ---------------------------------------------------------------------------------------


def test_form_8_guidance_is_linear_from_the_unconditional_to_the_conditional_model() -> None:
    model, y = transformer(torch.float64), torch.arange(6)
    x, t = torch.randn(6, 4, 4, 4, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    null = torch.full_like(y, model.null_label)
    conditional, unconditional = model(t, x, y), model(t, x, null)
    assert torch.equal(guided(model, y, 1.0, model.null_label)(t, x), conditional)
    assert torch.equal(guided(model, y, 0.0, model.null_label)(t, x), unconditional)
    for scale in (0.25, 0.5, 3.0):
        mixed = guided(model, y, scale, model.null_label)(t, x)
        expected = (1 - scale) * unconditional + scale * conditional
        torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)
        assert ((mixed - conditional).abs().amax(dim=(0, 2, 3)) > 1e-3).all(), "every channel moves"


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 5), (1.0, 5), (2.0, 10)])
def test_guidance_takes_a_second_pass_only_where_it_must(scale: float, rows: int) -> None:
    seen = []

    def model(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    guided(model, torch.zeros(5, dtype=torch.int64), scale, 10)(torch.tensor(0.0), torch.zeros(5, 1))
    assert seen == [rows]


def test_labels_are_dropped_one_by_one() -> None:
    y, u = torch.arange(8), torch.tensor([0.0, 0.09, 0.1, 0.5, 0.99, 0.05, 0.2, 0.3])
    assert drop_labels(y, u, 0.1, 10).tolist() == [10, 10, 2, 3, 4, 10, 6, 7]
    assert torch.equal(drop_labels(y, u, 0.0, 10), y)


def test_form_9_the_average_of_weights() -> None:
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


def test_form_11_stratified_times() -> None:
    batch, batches = 64, 500
    times = []
    for step in range(batches):
        u = random.uniform(0, "t", step, (batch,))
        times.append(stratified(u, random.permutation(0, "t order", step, batch)))
        assert sorted((times[-1] * batch).long().tolist()) == list(range(batch)), "one time in each bin"
    t = torch.stack(times).double()
    # Independent of the place in the batch: each place's mean over the batches is 1/2 within 5 standard errors.
    assert (t.mean(0) - 0.5).abs().max() < 5 * math.sqrt(1 / 12 / batches)
    # Uniform within the bins: Kolmogorov–Smirnov distance of u at a level of 1e-6.
    u = (t * batch % 1).flatten().sort().values
    steps = torch.arange(1, len(u) + 1) / len(u)
    assert (u - steps).abs().max() < math.sqrt(math.log(2 / 1e-6) / 2 / len(u))


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5) and 0 < factors[99] < 0.001
    assert sorted(factors[10:], reverse=True) == factors[10:]


def test_latents_are_normalised_and_restored() -> None:
    scale = LatentScale(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]))
    x = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(scale.restore(scale.normalise(x)), x)
    assert torch.equal(scale.normalise(scale.mean[None, :, None, None]), torch.zeros(1, 2, 1, 1))
    assert torch.equal(draw(x, torch.zeros_like(x), torch.randn_like(x)), x)


# --- transformer -----------------------------------------------------------------------------------------------------


def test_form_13_a_sample_does_not_depend_on_its_batch_mates() -> None:
    model = transformer(torch.float64)
    x0, y = random.normal_rows(0, "sample", range(6), (4, 4, 4)).double(), torch.arange(6)
    together = integrate(guided(model, y, 2.0, 10), x0, uniform_grid(5), "midpoint").x[-1]
    for i in range(6):
        alone = integrate(guided(model, y[i : i + 1], 2.0, 10), x0[i : i + 1], uniform_grid(5), "midpoint").x[-1]
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-10)


def test_time_features_tell_times_apart() -> None:
    features = time_features(torch.linspace(0, 1, 256))
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum()
    effective_rank = torch.exp(-(share * share.log()).sum())
    assert effective_rank > 30  # unscaled it is 1.05


def test_tokens_know_where_they_are() -> None:
    table = positions(4, 32)
    assert len({tuple(row.tolist()) for row in table}) == 16
    model = transformer(torch.float64)
    x, y, t = torch.randn(1, 4, 4, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), torch.tensor(0.5)
    turned = model(t, x.rot90(1, (2, 3)), y).rot90(-1, (2, 3))
    assert (turned - model(t, x, y)).abs().max() > 1e-3


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_every_patch_size_that_divides_works(patch_size: int) -> None:
    model = Transformer(4, 4, patch_size, 32, 1, 2, 2, 10)
    assert model(torch.rand(3), torch.randn(3, 4, 4, 4), torch.arange(3)).shape == (3, 4, 4, 4)


def test_a_patch_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Transformer(4, 4, 3, 32, 1, 2, 2, 10)
    assert str(error.value) == "model.patch_size is 3, which does not divide latents of 4×4; choose one of [1, 2, 4]"


# --- randomness ------------------------------------------------------------------------------------------------------


def test_draws_are_functions_of_seed_stream_and_index_alone() -> None:
    a = random.normal(0, "x0", 5, (3, 2))
    random.normal(0, "x0", 6, (100,))
    assert torch.equal(a, random.normal(0, "x0", 5, (3, 2)))
    for other in ((1, "x0", 5), (0, "posterior", 5), (0, "x0", 6)):
        assert not torch.equal(a, random.normal(*other, (3, 2)))
    rows = random.normal_rows(0, "sample", [3, 1, 7], (2,))
    assert torch.equal(rows[1], random.normal_rows(0, "sample", [1], (2,))[0])


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (7, 16)])
def test_batches_pass_over_every_row_once_an_epoch(n: int, batch: int) -> None:
    rows = torch.cat([random.batch_rows(0, step, batch, n) for step in range(3 * n)])
    epochs = rows[: len(rows) // n * n].reshape(-1, n)
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1, "shuffled anew"

"""The velocity transformer, fitted to the latents with conditional flow matching, and a weak one → models/flow/."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm import random
from lfm.flow.coupling import COUPLINGS
from lfm.flow.ema import EMA, decay_at
from lfm.flow.loss import WEIGHTINGS, cfm_loss, drop_labels, squared_error
from lfm.flow.path import LEAST_SIGMA, ProbPath, Velocity, as_velocity, last_time, make_path
from lfm.flow.schedule import SCHEDULES
from lfm.flow.times import sample_times, stratified
from lfm.nets.latents import LatentScale, draw
from lfm.nets.transformer import Transformer
from lfm.nets.weights import MODEL_FILES, load_model, save_model
from lfm.precision import precision, resolve
from pipeline.artifacts import hdf5, latents, snapshots
from pipeline.artifacts.files import write_csv, write_json
from pipeline.artifacts.latents import Latents, Store
from pipeline.machine.ranks import Ranks
from pipeline.params import FlowParams, TrainParams
from pipeline.progress import say
from pipeline.run import Context, run
from pipeline.training.ahead import ahead
from pipeline.training.checkpoint import State
from pipeline.training.init import begin_with, init_folder
from pipeline.training.loop import Loop, compiled
from pipeline.training.together import shared

SNAPSHOT_NOISES, SNAPSHOT_STEPS = 16, 25
BINS = 5  # of t, all of the same width, whose losses are shown while the training runs
VALIDATION_BATCH = 1000
ABOUT = (
    "dataset", "classes", "image_channels", "image_height", "image_width", "autoencoder_sha256", "train_sha256",
)  # fmt: skip


class Result(NamedTuple):
    model: Transformer  # the averaged weights
    losses: list[tuple[int, float]]  # step, loss of the training batch
    validation: list[tuple[int, float]]  # step, validation loss of the averaged weights
    snapshots: list[tuple[int, Tensor]]  # step, normalised latents (16, c, h, w)


class Validation:
    """The velocity's loss on the validation split, at noise and uniform times that never change: comparable between all
    couplings and densities of times. Not between paths, which have other velocities, nor between predictions: an error of
    predicted data counts up to 1 / `LEAST_SIGMA` times in the velocity."""

    def __init__(self, velocity: Velocity, path: ProbPath, end: float, p: TrainParams, data: Latents) -> None:
        n, shape, device = len(data), data.mean.shape, data.device
        self.velocity, self.path, self.precision, self.y = velocity, path, p.precision, data.labels
        self.x0 = random.normal(0, "validation x0", 0, shape).to(device)
        self.x1 = draw(data.mean, data.std, random.normal(0, "validation posterior", 0, shape).to(device))
        u, order = random.uniform(0, "validation t", 0, (n,)), random.permutation(0, "validation t order", 0, n)
        self.t = (end * stratified(u, order)).to(device)

    @torch.no_grad()
    def loss(self) -> tuple[float, list[float]]:
        """Mean over the whole split, batch by batch; and over the parts of it whose t is in each of `BINS`."""
        parts = zip(*(a.split(VALIDATION_BATCH) for a in (self.x0, self.x1, self.t, self.y)), strict=True)
        total, each = 0.0, []
        for x0, x1, t, y in parts:
            with precision(self.precision, x0.device):
                error = squared_error(self.velocity, self.path, x0, x1, t, y)
            total += error.mean().item() * len(y)
            each.append(error.flatten(1).mean(1))
        bins = (self.t * BINS).long().clamp(max=BINS - 1)
        sums = torch.zeros(BINS).to(self.t).index_add(0, bins, torch.cat(each).to(self.t))
        return total / len(self.y), (sums / bins.bincount(minlength=BINS)).tolist()


@torch.no_grad()
def snapshot(model: Transformer, velocity: Velocity, end: float, shape: torch.Size, p: TrainParams) -> Tensor:
    """The same 16 noises, labels 0, 1, 2 … in turn, integrated by the midpoint rule with the model as it is: (16, c, h, w).

    Written out: a training that used the sampler would be run again whenever that is edited.
    """
    device = next(model.parameters()).device
    x = random.moved(random.normal_rows(p.seed, "snapshot", range(SNAPSHOT_NOISES), shape), device)
    y = torch.arange(SNAPSHOT_NOISES, device=device) % max(1, model.null_label)
    grid = (end * torch.linspace(0, 1, SNAPSHOT_STEPS + 1, dtype=torch.float64)).to(x.dtype)  # on the CPU
    with precision(p.precision, device):
        for t, dt in zip(grid[:-1], grid.diff(), strict=True):
            middle = x + velocity(t, x, y).to(x.dtype) * (0.5 * dt)
            x = x + dt * velocity(t + 0.5 * dt, middle, y).to(x.dtype)
    return x


def snapshot_steps(p: TrainParams) -> set[int]:
    """After which steps snapshots are taken."""
    if isinstance(p.snapshots, int):
        return {*range(0, p.steps, p.snapshots), p.steps}
    return {round(fraction * p.steps) for fraction in p.snapshots}


def draws(f: FlowParams, p: TrainParams, end: float, shape: torch.Size, step: int) -> tuple[Tensor, ...]:
    """All that is random in one step but the rows of its data, on the CPU: noise of their posteriors and noise x0
    (B, c, h, w) each, times t (B,), and uniform draws (B,) by which labels are dropped."""
    n = p.batch_size
    posterior, x0 = (random.normal(p.seed, stream, step, (n, *shape)) for stream in ("posterior", "x0"))
    u, choice, drop = (random.uniform(p.seed, stream, step, (n,)) for stream in ("t", "t choice", "drop"))
    order = random.permutation(p.seed, "t order", step, n)
    t = end * sample_times(f.times, u, order, choice, f.logit_mean, f.logit_std, f.uniform_share)
    return posterior, x0, t, drop


def batch(
    f: FlowParams, p: TrainParams, null: int, rows: Latents, posterior: Tensor, x0: Tensor, t: Tensor, drop: Tensor
) -> tuple[Tensor, ...]:
    """Noise x0, data x1, times t and labels y of one step, from its rows and `draws`, on the device of both."""
    x1 = draw(rows.mean, rows.std, posterior)
    x0 = COUPLINGS[f.coupling](x0, x1, rows.labels if null else None)
    return x0, x1, t, drop_labels(rows.labels, drop, p.label_dropout, null)


class Fit(NamedTuple):
    """What a step changes, and the loss that it lowers."""

    model: Transformer
    ema: EMA[Transformer]
    optimizer: torch.optim.Optimizer
    loss: Callable[..., Tensor]  # x0, x1, t, y of a batch ↦ a scalar


def begin(
    model: Transformer, path: ProbPath, f: FlowParams, p: TrainParams, device: torch.device, ranks: Ranks | None = None
) -> Fit:
    """A fit of the model, which is on the device, to the velocity of a path, by one process or several."""
    loss = partial(cfm_loss, model, path, prediction=f.prediction, weighting=WEIGHTINGS[f.weighting])
    loss = compiled(loss, "train", device) if p.compile else loss
    optimizer = torch.optim.AdamW(
        model.parameters(), p.learning_rate, (0.9, p.beta2), weight_decay=p.weight_decay, fused=True
    )
    return Fit(model, EMA(model), optimizer, shared(loss, model, ranks or Ranks(), "train", p.batch_size))


def update(fit: Fit, p: TrainParams, step: int, x0: Tensor, x1: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """One step of the optimiser and of the average on a batch. Returns its loss, on the device: reading it waits for a GPU. Of
    several processes' losses the mean is that of the batch."""
    with precision(p.precision, x0.device):
        loss = fit.loss(x0, x1, t, y)
    loss.backward()
    if p.gradient_clip is not None:
        torch.nn.utils.clip_grad_norm_(fit.model.parameters(), p.gradient_clip)
    fit.optimizer.step()
    fit.optimizer.zero_grad()
    fit.ema.update(fit.model, decay_at(step, p.ema_decay))
    return loss


def rate(p: TrainParams, steps: int) -> Callable[[int], float]:
    """step ↦ learning rate, of a training of so many."""
    return lambda step: p.learning_rate * SCHEDULES[p.schedule](step, steps, p.warmup_steps)


def train_weak(context: Context, model: Transformer, data: Store, steps: int) -> Transformer:
    """The averaged weights after another, shorter training: what autoguidance moves away from. (Those of the long one after as
    many steps don't do: its learning rate is high then, and its errors are not those of the model in the end.)"""
    f, p = context.params.flow, context.params.train
    path = make_path(f.path, f.sigma_min)
    end = last_time(path, divides_by_sigma=f.prediction == "data")
    fit = begin(model, path, f, p, data.device, context.ranks)
    drawn = ahead(partial(draws, f, p, end, data.shape), data.device)
    losses: list[tuple[int, float]] = []
    state = State({"model": model, "average": fit.ema.average}, fit.optimizer, {"losses": losses})
    loop = Loop(context, "train", state, steps, rate(p, steps), "weak")
    for step in loop:
        rows = data.batch(p.seed, step, p.batch_size)
        loss = update(fit, p, step, *batch(f, p, model.null_label, rows, *drawn(step)))
        if step == 0 or loop.every(50, step + 1):
            losses.append((step + 1, loop.checked(loss, step + 1, losses)))
    return fit.ema.average


def train(context: Context, model: Transformer, data: Store, held_out: Latents) -> Result:
    """Conditional flow matching (Lipman et al. 2023)."""
    f, p = context.params.flow, context.params.train
    path = make_path(f.path, f.sigma_min)
    end = last_time(path, divides_by_sigma=f.prediction == "data")
    fit = begin(model, path, f, p, data.device, context.ranks)
    averaged = fit.ema.average
    average = as_velocity(averaged, path, f.prediction, LEAST_SIGMA)
    drawn = ahead(partial(draws, f, p, end, data.shape), data.device)
    validation, due = Validation(average, path, end, p, held_out), snapshot_steps(p)
    losses, first, validated, by_t, snaps = [], [], [], [], []  # type: ignore[var-annotated]
    records = {"losses": losses, "first": first, "validation": validated, "by_t": by_t, "snapshots": snaps}
    loop = Loop(
        context,
        "train",
        State({"model": model, "average": averaged}, fit.optimizer, records),
        p.steps,
        rate(p, p.steps),
    )
    edges = [f"{i / BINS:g}" for i in range(BINS + 1)]
    columns = ("step", "validation_loss", *(f"t from {a} to {b}" for a, b in pairwise(edges)))
    live = context.live("validation", columns, by_t)
    if context.leads and loop.start == 0 and 0 in due:
        snaps.append((0, snapshot(averaged, average, end, data.shape, p)))

    for step in loop:
        rows = data.batch(p.seed, step, p.batch_size)
        loss = update(fit, p, step, *batch(f, p, model.null_label, rows, *drawn(step)))
        done = step + 1
        if step == 0:  # what a diverging loss is compared with; the curve begins later
            first.append((done, loop.checked(loss, done, first)))
        if loop.every(50, done):
            losses.append((done, loop.checked(loss, done, first)))
        if context.leads and loop.every(p.validate_every, done):
            mean, bins = validation.loss()
            validated.append((done, mean))
            by_t.append((done, mean, *bins))
            live.add(by_t[-1])
        if context.leads and done in due:
            snaps.append((done, snapshot(averaged, average, end, data.shape, p)))
    return Result(averaged, losses, validated, snaps)


def write(
    context: Context, result: Result, weak: Transformer | None, scale: LatentScale, about: dict[str, str | int | float]
) -> None:
    """The flow's folder."""
    p = context.params
    with context.publish("flow") as folder:
        validation_loss = result.validation[-1][1]
        save_model(folder, result.model, result.model.config)
        if weak is not None:
            save_model(folder / "weak", weak, weak.config)
        flow = {**p.flow.model_dump(), "scale_mean": scale.mean.tolist(), "scale_std": scale.std.tolist()}
        write_json(folder / "flow.json", {**flow, **{name: about[name] for name in ABOUT}})
        sections = {section: getattr(p, section).model_dump() for section in context.entry.sections}
        record = {
            "params": sections,
            "precision": resolve(p.train.precision, context.device),
            "train_sha256": about["train_sha256"],
            "validation_loss": validation_loss,
        }
        write_json(folder / "record.json", record)
        write_csv(folder / "curves.csv", ("step", "train_loss"), result.losses)
        write_csv(folder / "validation.csv", ("step", "validation_loss"), result.validation)
        with hdf5.writing(folder / "progress.h5") as out:
            out.add("steps", np.array([step for step, _ in result.snapshots]))
            out.add("latents", torch.stack([x for _, x in result.snapshots]).cpu().numpy())
            out.attributes(format=snapshots.FORMAT.name)
    say(f"{context.output('flow')}: validation loss {validation_loss:.5f} after {p.train.steps:,} steps")


def main(context: Context) -> None:
    p = context.params
    with hdf5.reading(context.input("latents"), latents.FORMAT) as file:
        scale = LatentScale(*(torch.from_numpy(file.read(f"scale/{name}")) for name in ("mean", "std")))
        data = latents.opened(file, "train", scale, context.device, p.runtime.latents_mb)
        held_out = latents.read(file, "validation", scale, context.device)
        channels, size, _ = data.shape
        classes = int(file.attribute("classes")) if p.model.labels else 0

        def new() -> Transformer:
            torch.manual_seed(random.torch_seed(p.train.seed, "transformer"))
            return Transformer(channels, size, **p.model.model_dump(exclude={"labels"}), classes=classes)

        model = new()
        if (init := p.train.init) is not None:
            folder = init_folder("train", init, p.train.init_digest, "", MODEL_FILES)
            begin_with("train", init, model, load_model(folder, Transformer).state_dict(), by_class=("label.weight",))
        weights, how = (
            sum(w.numel() for w in model.parameters()),
            "in memory" if isinstance(data, Latents) else "streamed",
        )
        say(f"train: {weights:,} weights on {len(data):,} latents of {channels}×{size}×{size}, {how}")
        result = train(context, model.to(context.device), data, held_out)
        weak = train_weak(context, new().to(context.device), data, n) if (n := p.train.weak_steps) else None
        write(context, result, weak, scale, file.attributes)


if __name__ == "__main__":
    run(main)

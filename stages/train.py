"""The velocity transformer, fitted to the latents with conditional flow matching → models/flow/."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm import random
from lfm.flow.coupling import COUPLINGS
from lfm.flow.ema import EMA, decay_at
from lfm.flow.path import Path, Velocity, as_velocity, cfm_loss, last_time, make_path
from lfm.flow.schedule import SCHEDULES
from lfm.flow.times import sample_times, stratified
from lfm.nets.latents import LatentScale, draw
from lfm.nets.transformer import Transformer
from lfm.nets.weights import save_model
from lfm.sampling.guidance import drop_labels, guided
from lfm.sampling.solver import integrate, time_grid
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts import latents as store
from pipeline.artifacts.files import FLOW, LATENTS, LATENTS_FORMAT, PROGRESS_FORMAT, publishing, write_csv, write_json
from pipeline.artifacts.latents import Latents, Store
from pipeline.machine import scratch
from pipeline.machine.runtime import compiled, device, precision
from pipeline.params import FlowParams, Params, TrainParams
from pipeline.progress import Progress, say
from pipeline.run import run
from pipeline.training.checkpoint import Checkpoints, State

SNAPSHOT_NOISES, SNAPSHOT_STEPS = 16, 25
VALIDATION_BATCH = 1000


class Result(NamedTuple):
    model: Transformer  # the averaged weights
    losses: list[tuple[int, float]]  # step, loss of the training batch
    validation: list[tuple[int, float]]  # step, validation loss of the averaged weights
    snapshots: list[tuple[int, Tensor]]  # step, normalised latents (16, c, h, w)


class Validation:
    """The velocity's loss on the validation split, at noise and uniform times that never change: comparable between all
    couplings, densities of times and predictions."""

    def __init__(self, velocity: Velocity, path: Path, end: float, p: TrainParams, data: Latents) -> None:
        n, shape, where = len(data), data.mean.shape, data.where
        self.velocity, self.path, self.precision, self.y = velocity, path, p.precision, data.labels
        self.x0 = random.normal(0, "validation x0", 0, shape).to(where)
        self.x1 = draw(data.mean, data.std, random.normal(0, "validation posterior", 0, shape).to(where))
        u, order = random.uniform(0, "validation t", 0, (n,)), random.permutation(0, "validation t order", 0, n)
        self.t = (end * stratified(u, order)).to(where)

    @torch.no_grad()
    def loss(self) -> float:
        """Mean over the whole split, batch by batch."""
        parts = zip(*(a.split(VALIDATION_BATCH) for a in (self.x0, self.x1, self.t, self.y)), strict=True)
        total = 0.0
        for x0, x1, t, y in parts:
            with precision(self.precision, x0.device):
                total += cfm_loss(self.velocity, self.path, x0, x1, t, y).item() * len(y)
        return total / len(self.y)


@torch.no_grad()
def snapshot(model: Transformer, velocity: Velocity, end: float, shape: torch.Size, p: TrainParams) -> Tensor:
    """The same 16 noises, labels 0, 1, 2 … in turn, integrated with the model as it is now: (16, c, h, w)."""
    where = next(model.parameters()).device
    x0 = random.normal_rows(p.seed, "snapshot", range(SNAPSHOT_NOISES), shape).to(where)
    y = torch.arange(SNAPSHOT_NOISES, device=where) % max(1, model.null_label)
    with precision(p.precision, where):
        follow = guided(velocity, y, 1.0, model.null_label)
        return integrate(follow, x0, time_grid(SNAPSHOT_STEPS, end=end), "midpoint").x[-1]


def snapshot_steps(p: TrainParams) -> set[int]:
    """After which steps snapshots are taken."""
    if isinstance(p.snapshots, int):
        return {*range(0, p.steps, p.snapshots), p.steps}
    return {round(fraction * p.steps) for fraction in p.snapshots}


def batches(
    f: FlowParams, p: TrainParams, end: float, null: int, data: Store, start: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """Noise x0, data x1, times t and labels y of each step from `start` on: all that is random in it."""
    n, where, shape = p.batch_size, data.where, data.shape
    for step in range(start, p.steps):
        batch = data.batch(p.seed, step, n)
        x1 = draw(batch.mean, batch.std, random.normal(p.seed, "posterior", step, (n, *shape)).to(where))
        noise = random.normal(p.seed, "x0", step, (n, *shape)).to(where)
        x0 = COUPLINGS[f.coupling](noise, x1, batch.labels if null else None)
        u, choice = (random.uniform(p.seed, stream, step, (n,)) for stream in ("t", "t choice"))
        order = random.permutation(p.seed, "t order", step, n)
        t = end * sample_times(f.times, u, order, choice, f.logit_mean, f.logit_std, f.uniform_share)
        y = drop_labels(batch.labels, random.uniform(p.seed, "drop", step, (n,)).to(where), p.label_dropout, null)
        yield x0, x1, t.to(where), y


def train(
    model: Transformer,
    f: FlowParams,
    p: TrainParams,
    data: Store,
    held_out: Latents,
    show: bool,
    saved: Checkpoints,
) -> Result:
    """Conditional flow matching (Lipman et al. 2023): the training loop as one linear story."""
    where, shape = data.where, data.shape
    path = make_path(f.path, f.sigma_min)
    end = last_time(path, divides_by_sigma=f.prediction == "data")
    ema = EMA(model)
    average = as_velocity(ema.average, path, f.prediction)
    loss_of = partial(cfm_loss, model, path, prediction=f.prediction)
    loss_of = compiled(loss_of, where, "train") if p.compile else loss_of
    optimizer = torch.optim.AdamW(
        model.parameters(), p.learning_rate, (0.9, p.beta2), weight_decay=p.weight_decay, fused=True
    )
    validation = Validation(average, path, end, p, held_out)
    due = snapshot_steps(p)
    losses: list[tuple[int, float]] = []
    first: list[tuple[int, float]] = []  # what a diverging loss is told by; the curve begins later
    validated: list[tuple[int, float]] = []
    snapshots: list[tuple[int, Tensor]] = []
    records: dict[str, list[Any]] = {"losses": losses, "first": first, "validation": validated, "snapshots": snapshots}
    state = State({"model": model, "average": ema.average}, optimizer, records)
    start = saved.resume(state)
    if start == 0 and 0 in due:
        snapshots.append((0, snapshot(ema.average, average, end, shape, p)))

    with Progress(p.steps, "train", "step", show) as progress:
        progress.advance(start)
        for step, (x0, x1, t, y) in enumerate(batches(f, p, end, model.null_label, data, start), start):
            with precision(p.precision, where):
                loss = loss_of(x0, x1, t, y)
            loss.backward()
            if p.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), p.gradient_clip)
            for group in optimizer.param_groups:
                group["lr"] = p.learning_rate * SCHEDULES[p.schedule](step, p.steps, p.warmup_steps)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(model, decay_at(step, p.ema_decay))

            done = step + 1
            if step == 0:
                first.append((done, saved.sound(done, loss.item(), first)))
            if done % 50 == 0 or done == p.steps:
                losses.append((done, saved.sound(done, loss.item(), first)))
            if done % p.validate_every == 0 or done == p.steps:
                validated.append((done, validation.loss()))
            if done in due:
                snapshots.append((done, snapshot(ema.average, average, end, shape, p)))
            saved.keep(state, done, p.steps)
            progress.advance(loss=losses[-1][1] if losses else math.nan)
    return Result(ema.average, losses, validated, snapshots)


def main(p: Params) -> None:
    where = device()
    with arrays.reading(LATENTS, LATENTS_FORMAT) as file, scratch.opened() as folder:
        scale = LatentScale(*(torch.from_numpy(file.read(f"scale/{name}")) for name in ("mean", "std")))
        data = store.opened(file, "train", scale, where, p.runtime.latents_mb)
        held_out = store.read(file, "validation", scale, where)
        about = dict(file.attributes)
        channels, size, _ = data.shape
        classes = int(about["classes"]) if p.model.labels else 0
        torch.manual_seed(random.torch_seed(p.train.seed, "transformer"))
        model = Transformer(channels, size, **p.model.model_dump(exclude={"labels"}), classes=classes).to(where)
        weights, kept = sum(w.numel() for w in model.parameters()), "held" if isinstance(data, Latents) else "streamed"
        say(f"train: {weights:,} weights on {len(data):,} latents of {channels}×{size}×{size}, {kept}")
        saved = Checkpoints(folder, p.runtime.checkpoint_every)
        result = train(model, p.flow, p.train, data, held_out, p.runtime.progress, saved)

    with publishing(FLOW) as folder:
        save_model(folder, result.model, model.config)
        flow = {**p.flow.model_dump(), "scale_mean": scale.mean.tolist(), "scale_std": scale.std.tolist()}
        names = (
            "dataset",
            "classes",
            "image_channels",
            "image_height",
            "image_width",
            "autoencoder_sha256",
            "train_sha256",
        )
        write_json(folder / "flow.json", {**flow, **{name: about[name] for name in names}})
        record = {
            "params": {s: getattr(p, s).model_dump() for s in ("model", "flow", "train")},
            "train_sha256": about["train_sha256"],
        }
        write_json(folder / "record.json", {**record, "validation_loss": result.validation[-1][1]})
        write_csv(folder / "curves.csv", ("step", "train_loss"), result.losses)
        write_csv(folder / "validation.csv", ("step", "validation_loss"), result.validation)
        with arrays.writing(folder / "progress.h5") as out:
            out.add("steps", np.array([step for step, _ in result.snapshots]))
            out.add("latents", torch.stack([x for _, x in result.snapshots]).cpu().numpy())
            out.attributes(format=PROGRESS_FORMAT)
    say(f"{FLOW}: validation loss {result.validation[-1][1]:.5f} after {p.train.steps:,} steps")


if __name__ == "__main__":
    run(main, "model", "flow", "train")

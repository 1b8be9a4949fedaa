"""The velocity transformer, fitted to the latents with conditional flow matching → models/flow/."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm.ema import EMA, decay_at
from lfm.guidance import drop_labels, guided
from lfm.latents import LatentScale, draw
from lfm.path import cfm_loss
from lfm.schedule import warmup_cosine
from lfm.solver import integrate, uniform_grid
from lfm.times import stratified
from lfm.transformer import Transformer
from lfm.weights import save_model
from pipeline import arrays, random
from pipeline.files import FLOW, LATENTS, LATENTS_FORMAT, PROGRESS_FORMAT, publishing, write_csv, write_json
from pipeline.params import Params, TrainParams
from pipeline.report import Progress, say
from pipeline.runtime import compiled, device, precision
from stages.cli import run

SNAPSHOT_NOISES, SNAPSHOT_STEPS = 16, 25
VALIDATION_BATCH = 1000


class Latents(NamedTuple):
    """One split's posteriors, normalised, and labels, on the device."""

    mean: Tensor  # (N, c, h, w)
    std: Tensor  # (N, c, h, w)
    labels: Tensor  # (N,) int64

    def rows(self, rows: Tensor) -> "Latents":
        return Latents(self.mean[rows], self.std[rows], self.labels[rows])


class Result(NamedTuple):
    model: Transformer  # the averaged weights
    curves: list[tuple[int, float, float | None]]  # step, training loss, validation loss where it was taken
    snapshots: list[tuple[int, Tensor]]  # step, normalised latents (16, c, h, w)


class Validation:
    """The loss of the averaged weights on the validation split, at noise and times that never change."""

    def __init__(self, model: Transformer, sigma_min: float, p: TrainParams, data: Latents) -> None:
        n, shape, where = len(data.labels), data.mean.shape, data.mean.device
        self.model, self.sigma_min, self.precision, self.y = model, sigma_min, p.precision, data.labels
        self.x0 = random.normal(0, "validation x0", 0, shape).to(where)
        self.x1 = draw(data.mean, data.std, random.normal(0, "validation posterior", 0, shape).to(where))
        u, order = (
            random.uniform(0, "validation t", 0, (n,)),
            random.permutation(0, "validation t order", 0, n),
        )
        self.t = stratified(u, order).to(where)

    @torch.no_grad()
    def loss(self) -> float:
        """Mean over the whole split, batch by batch."""
        parts = zip(*(a.split(VALIDATION_BATCH) for a in (self.x0, self.x1, self.t, self.y)), strict=True)
        total = 0.0
        for x0, x1, t, y in parts:
            with precision(self.precision, x0.device):
                total += cfm_loss(self.model, x0, x1, t, y, self.sigma_min).item() * len(y)
        return total / len(self.y)


@torch.no_grad()
def snapshot(model: Transformer, shape: torch.Size, p: TrainParams, where: torch.device) -> Tensor:
    """The same 16 noises, labels 0, 1, 2 … in turn, integrated with the model as it is now: (16, c, h, w)."""
    x0 = random.normal_rows(p.seed, "snapshot", range(SNAPSHOT_NOISES), shape).to(where)
    y = torch.arange(SNAPSHOT_NOISES, device=where) % model.null_label
    with precision(p.precision, where):
        velocity = guided(model, y, 1.0, model.null_label)
        return integrate(velocity, x0, uniform_grid(SNAPSHOT_STEPS), "midpoint").x[-1]


def train(model: Transformer, sigma_min: float, p: TrainParams, data: Latents, held_out: Latents, show: bool) -> Result:
    """Conditional flow matching (Lipman et al. 2023): the training loop as one linear story."""
    where, shape = data.mean.device, data.mean.shape[1:]
    ema, null = EMA(model), model.null_label
    loss_of = compiled(cfm_loss, where) if p.compile else cfm_loss
    optimizer = torch.optim.AdamW(
        model.parameters(), p.learning_rate, (0.9, p.beta2), weight_decay=p.weight_decay, fused=True
    )
    validation = Validation(ema.average, sigma_min, p, held_out)
    snapshot_steps = [round(fraction * p.steps) for fraction in p.snapshots]
    snapshots = [(0, snapshot(ema.average, shape, p, where))] if 0 in snapshot_steps else []
    curves: list[tuple[int, float, float | None]] = []

    with Progress(p.steps, "train", "step", show) as progress:
        for step in range(p.steps):
            batch = data.rows(random.batch_rows(p.seed, step, p.batch_size, len(data.labels)).to(where))
            x0 = random.normal(p.seed, "x0", step, (p.batch_size, *shape)).to(where)
            x1 = draw(batch.mean, batch.std, random.normal(p.seed, "posterior", step, x0.shape).to(where))
            u, order = (
                random.uniform(p.seed, "t", step, x0.shape[:1]),
                random.permutation(p.seed, "t order", step, len(x0)),
            )
            t = stratified(u, order).to(where)
            y = drop_labels(
                batch.labels, random.uniform(p.seed, "drop", step, t.shape).to(where), p.label_dropout, null
            )

            with precision(p.precision, where):
                loss = loss_of(model, x0, x1, t, y, sigma_min)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), p.gradient_clip)
            for group in optimizer.param_groups:
                group["lr"] = p.learning_rate * warmup_cosine(step, p.steps, p.warmup_steps)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(model, decay_at(step, p.ema_decay))

            done = step + 1
            due = done % p.validate_every == 0 or done == p.steps
            if due or done % 50 == 0:
                curves.append((done, loss.item(), validation.loss() if due else None))
            if done in snapshot_steps:
                snapshots.append((done, snapshot(ema.average, shape, p, where)))
            progress.advance(loss=curves[-1][1] if curves else math.nan)
    return Result(ema.average, curves, snapshots)


def read_latents(file: arrays.ArrayFile, split: str, scale: LatentScale, where: torch.device) -> Latents:
    """One split of latents.h5, normalised."""
    mean, std = (torch.from_numpy(file.read(f"{split}/{name}")) for name in ("mean", "std"))
    labels = torch.from_numpy(file.read(f"{split}/labels")).long()
    return Latents(scale.normalise(mean).to(where), (std / scale.std[:, None, None]).to(where), labels.to(where))


def main(p: Params) -> None:
    where = device()
    with arrays.reading(LATENTS, LATENTS_FORMAT) as file:
        scale = LatentScale(*(torch.from_numpy(file.read(f"scale/{name}")) for name in ("mean", "std")))
        data, held_out = (read_latents(file, split, scale, where) for split in ("train", "validation"))
        about = dict(file.attributes)
    _, channels, size, _ = data.mean.shape
    torch.manual_seed(random.torch_seed(p.train.seed, "transformer"))
    model = Transformer(channels, size, **p.model.model_dump(), classes=int(about["classes"])).to(where)
    say(
        f"train: {sum(w.numel() for w in model.parameters()):,} weights on {len(data.labels):,} latents of {channels}×{size}×{size}"
    )

    result = train(model, p.flow.sigma_min, p.train, data, held_out, p.runtime.progress)

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
        write_json(folder / "record.json", {**record, "validation_loss": result.curves[-1][2]})
        write_csv(folder / "curves.csv", ("step", "train_loss", "validation_loss"), result.curves)
        with arrays.writing(folder / "progress.h5") as out:
            out.add("steps", np.array([step for step, _ in result.snapshots]))
            out.add("latents", torch.stack([x for _, x in result.snapshots]).cpu().numpy())
            out.attributes(format=PROGRESS_FORMAT)
    say(f"{FLOW}: validation loss {result.curves[-1][2]:.5f} after {p.train.steps:,} steps")


if __name__ == "__main__":
    run(main, "model", "flow", "train")

"""A flow map that samples in few evaluations, fitted to what the flow does in many → models/flow_map/."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from lfm import random
from lfm.flow.ema import EMA, decay_at
from lfm.flow.path import LEAST_SIGMA, as_velocity, last_time, make_path
from lfm.flow.schedule import warmup_cosine
from lfm.nets.flow_map import FlowMap
from lfm.nets.transformer import Transformer
from lfm.nets.weights import digest, load_model, read_config, save_model
from lfm.precision import precision, resolve
from lfm.sampling.guidance import Guidance, guided
from lfm.sampling.solver import integrate, time_grid
from pipeline.artifacts import hdf5, latents
from pipeline.artifacts.files import write_csv, write_json
from pipeline.artifacts.flow import check_guidance
from pipeline.errors import UserError
from pipeline.params import DistillParams
from pipeline.progress import say
from pipeline.run import Context, run
from pipeline.training.ahead import ahead
from pipeline.training.checkpoint import State
from pipeline.training.loop import Loop, compiled
from pipeline.training.order import batch_rows
from pipeline.training.together import shared

TOGETHER = 1000  # noises that the teacher integrates at a time
LARGEST = 60_000  # of a float16
Curve = list[tuple[int, float]]


class Teacher:
    """The flow, integrated by the midpoint rule with its guidance."""

    def __init__(self, context: Context) -> None:
        self.p, self.device, folder = context.params.distill, context.device, context.input("flow")
        self.model = load_model(folder, Transformer).to(self.device).requires_grad_(False)
        flow = read_config(folder / "flow.json")
        path = make_path(flow["path"], flow["sigma_min"])
        self.velocity = as_velocity(self.model, path, flow["prediction"], LEAST_SIGMA)
        self.weak = None
        if self.p.autoguidance_scale != 1:
            weak = load_model(folder / "weak", Transformer).to(self.device).requires_grad_(False)
            self.weak = as_velocity(weak, path, flow["prediction"], LEAST_SIGMA)
        self.end = last_time(path, divides_by_sigma=flow["prediction"] == "data")
        self.shape = (self.model.channels, self.model.size, self.model.size)
        check_guidance("distill", self.p.guidance_scale, self.model.label is not None, folder)

    @torch.inference_mode()
    def states(self, labels: np.ndarray, start: int) -> dict[str, np.ndarray]:
        """Where the noises of pairs start, start + 1 … are at the flow map's times: (B, evaluations + 1, c, h, w) float16."""
        p, rows = self.p, range(start, start + len(labels))
        x0 = random.moved(random.normal_rows(p.seed, "distill", rows, self.shape), self.device)
        y = torch.from_numpy(labels).to(self.device)
        (a, b), (c, d) = p.guidance_interval, p.autoguidance_interval
        by_labels, by_weak = Guidance(p.guidance_scale, (a, b)), Guidance(p.autoguidance_scale, (c, d))
        velocity = guided(self.velocity, y, self.model.null_label, by_labels, self.weak, by_weak)
        with precision(p.precision, self.device):
            at = list(range(0, p.teacher_steps + 1, p.teacher_steps // p.evaluations))
            x = integrate(velocity, x0, time_grid(p.teacher_steps, end=self.end), "midpoint", at).x
        if not bool(x.abs().max() < LARGEST):
            raise UserError("models/flow: draws latents that are not finite or too large; train it again")
        return {"states": x.transpose(0, 1).half().cpu().numpy()}


def pairs(context: Context, teacher: Teacher, labels: np.ndarray) -> Tensor:
    """The states of all pairs, made batch by batch: (pairs, evaluations + 1, c, h, w) float16."""
    made = []
    starts = range(0, len(labels), TOGETHER)
    parts = {f"pairs-{i}": partial(teacher.states, labels[i : i + TOGETHER], i) for i in starts}
    context.share(parts, "distill, pairs")
    with context.progress(len(labels), "distill, pairs", "pair") as progress:
        for name, make in parts.items():
            made.append(context.part(name, make)["states"])
            progress.advance(len(made[-1]))
    return torch.from_numpy(np.concatenate(made))


def jumps(evaluations: int) -> list[tuple[float, float, float]]:
    """Every jump that sampling takes, (s, t, probability): the longest has half of it, and the shorter a level's jumps, the
    more has the level: ½; ⅕, 3⁄10 for one, two, four evaluations."""
    levels = [2**i for i in range(evaluations.bit_length())]
    weights = np.arange(2.0, len(levels) + 1)
    shares = [0.5, *(0.5 * weights / weights.sum())] if len(levels) > 1 else [1.0]
    return [(i / n, (i + 1) / n, float(share) / n) for n, share in zip(levels, shares, strict=True) for i in range(n)]


def jump_loss(model: FlowMap, x_s: Tensor, x_t: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """E |u(s, t, x_s, y) − (x_t − x_s) / (t − s)|², a mean over batch and dimensions, for states of one trajectory."""
    duration = (t - s)[:, None, None, None]
    return (model(s, t, x_s, y).float() - (x_t - x_s) / duration).square().mean()


def batch(p: DistillParams, states: Tensor, labels: Tensor, end: float, step: int) -> tuple[Tensor, ...]:
    """States x_s and x_t, times s and t, labels y of one step, on the CPU: all that is random in it."""
    rows = batch_rows(p.seed, step, p.batch_size, len(labels))
    s, t, shares = torch.tensor(jumps(p.evaluations), dtype=torch.float64).unbind(1)
    drawn = random.uniform(p.seed, "jump", step, (p.batch_size,)).double()
    which = torch.searchsorted(shares.cumsum(0)[:-1], drawn, right=True)
    s, t = s[which], t[which]
    places = ((time * p.evaluations).long() for time in (s, t))
    x_s, x_t = (states[rows, place].float() for place in places)
    return x_s, x_t, (end * s).float(), (end * t).float(), labels[rows]


def train(context: Context, teacher: Teacher, states: Tensor, labels: Tensor) -> tuple[FlowMap, Curve]:
    """Regression on the teacher's trajectories. Returns the averaged weights and the loss curve."""
    p, device = context.params.distill, teacher.device
    torch.manual_seed(random.torch_seed(p.seed, "flow map"))
    model = FlowMap.from_velocity(teacher.model, p.evaluations).train()
    ema = EMA(model)
    loss_of = partial(jump_loss, model)
    loss_of = compiled(loss_of, "distill", device) if p.compile else loss_of
    loss_of = shared(loss_of, model, context.ranks, "distill", p.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), p.learning_rate, (0.9, 0.95), weight_decay=0.01, fused=True)
    curve: Curve = []
    loop = Loop(
        context, "distill", State({"model": model, "average": ema.average}, optimizer, {"curve": curve}), p.steps,
        lambda step: p.learning_rate * warmup_cosine(step, p.steps, min(100, p.steps // 2)),
    )  # fmt: skip
    drawn = ahead(partial(batch, p, states, labels, teacher.end), device)
    for step in loop:
        with precision(p.precision, device):
            loss = loss_of(*drawn(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, decay_at(step, p.ema_decay))
        if step == 0 or loop.every(50, step + 1):
            curve.append((step + 1, loop.checked(loss, step + 1, curve)))
    return ema.average, curve


def main(context: Context) -> None:
    p = context.params.distill
    with hdf5.reading(context.input("latents"), latents.FORMAT) as file:
        real = file.read("train/labels")
    teacher = Teacher(context)
    order = random.permutation(p.seed, "distill labels", 0, p.pairs).numpy()
    labels = np.resize(real, p.pairs)[order].astype(np.int64)  # as often as in the training split
    states = pairs(context, teacher, labels)
    model, curve = train(context, teacher, states, torch.from_numpy(labels))
    with context.publish("flow_map") as folder:
        save_model(folder, model, model.config)
        write_csv(folder / "curves.csv", ("step", "train_loss"), curve)
        flow = digest(context.input("flow"), ("config.json", "flow.json", "model.safetensors"))
        kind = resolve(p.precision, context.device)
        write_json(folder / "record.json", {"params": p.model_dump(), "precision": kind, "flow_sha256": flow})
    say(f"{context.output('flow_map')}: loss {curve[-1][1]:.5f} after {p.steps:,} steps on {p.pairs:,} trajectories")


if __name__ == "__main__":
    run(main)

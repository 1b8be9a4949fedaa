"""Training: images a second, and how near that comes to what the machine can multiply.

The steps are those of `stages.train`, draws, optimiser and average included, on random latents: the default model, DiT-B/2 on
latents of 4×4×4, and DiT-B/2 on latents of 4×32×32, 256 tokens, as the literature has it. The reference does per step what the
system that this one started from did: batches of 32 images through an autoencoder of Stable Diffusion's architecture, which the
gradient goes back through, a DiT-B/2 in float32 and Adam.

    python -m benchmarks.train [--rounds 5] [--only default dit-b2 tokens-256] [--eager]
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import alternate, options, ratio, report
from lfm.flow.loss import cfm_loss
from lfm.flow.path import make_path
from lfm.flow.times import systematic
from lfm.nets.transformer import Transformer
from lfm.precision import precision, resolve
from pipeline.artifacts.latents import Latents
from pipeline.machine.device import device as chosen_device
from pipeline.params import Params, load_params
from pipeline.training.ahead import ahead
from stages import train

DIT_B2: dict[str, Any] = {
    "block": "dit", "patch_size": 2, "width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4
}  # fmt: skip
LATENT, CLASSES, ROWS = (6, 4), 10, 4096  # channels and size of the bundled autoencoder's latents; random ones
GROUPS = ["default", "dit-b2", "tokens-256"]
REFERENCE, REFERENCE_BATCH = "reference", 32
SCALING = 0.18215  # of Stable Diffusion's latents


class Contestant(NamedTuple):
    step: Callable[[], object]
    batch: int
    flop: float  # of products and convolutions, forward and backward, an image
    precision: str


def flop_of(loss: Callable[[], Tensor]) -> float:
    """Of a loss and its gradient."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return float(counter.get_total_flops())


def ours(
    model: dict[str, Any], latent: tuple[int, int], batches: list[int], p: Params, device: torch.device, eager: bool
) -> list[Contestant]:
    """The training of `stages.train` with a model on random latents (channels, size), in batches of each of these sizes."""
    channels, size = latent
    net, path = (
        Transformer(channels, size, **model, classes=CLASSES).to(device),
        make_path(p.flow.path, p.flow.sigma_min),
    )
    f, t = p.flow, p.train.model_copy(update={"compile": p.train.compile and not eager})
    mean = torch.randn(ROWS, channels, size, size, device=device)
    data = Latents(mean, torch.full_like(mean, 0.1), torch.arange(ROWS, device=device) % CLASSES)
    fit = train.begin(net, path, f, t, device)

    def of(batch: int) -> Contestant:
        sized, steps = t.model_copy(update={"batch_size": batch}), itertools.count()
        drawn = ahead(partial(train.draws, f, sized, 1.0, data.shape), device)

        def parts(step: int) -> tuple[Tensor, ...]:
            return train.batch(f, sized, CLASSES, data.batch(t.seed, step, batch), *drawn(step))

        def step() -> None:
            n = next(steps)
            train.update(fit, sized, n, *parts(n))

        x0, x1, times, y = (x[:1] for x in parts(0))
        flop = flop_of(lambda: cfm_loss(net, path, x0, x1, times, y))
        fit.optimizer.zero_grad()
        return Contestant(step, batch, flop, resolve(t.precision, device))

    return [of(batch) for batch in batches]


def reference(device: torch.device) -> Contestant:
    """What the system that this one started from did, on images that are noise."""
    coder = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    ).to(device)  # fmt: skip
    net, path = Transformer(4, 4, **DIT_B2, classes=0).to(device), make_path("cond_ot", 1e-3)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def loss(n: int) -> Tensor:
        images = torch.rand(n, 3, 32, 32, device=device) * 2 - 1
        x1 = SCALING * coder.encode(images).latent_dist.sample()
        t = systematic(torch.rand(n, device=device), torch.arange(n, device=device))
        return cfm_loss(net, path, torch.randn_like(x1), x1, t, torch.zeros(n, dtype=torch.int64, device=device))

    def step() -> None:
        optimizer.zero_grad()
        loss(REFERENCE_BATCH).backward()
        optimizer.step()

    return Contestant(step, REFERENCE_BATCH, flop_of(lambda: loss(1)), "float32")


def product(name: str, device: torch.device) -> tuple[Callable[[], object], float]:
    """A product of square matrices in a precision, and its flop. A GPU is busy with larger ones alone."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(2, side, side, device=device)

    def multiply() -> None:
        with precision(name, device):
            a @ b

    if name == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    return multiply, 2.0 * side**3


def compare(
    runs: dict[str, Contestant], rounds: int, device: torch.device
) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """Rows of the table and figures of trainings that take turns, and with them the products that they are compared with."""
    products = {f"product, {kind}": product(kind, device) for kind in sorted({run.precision for run in runs.values()})}
    turns = {name: run.step for name, run in runs.items()} | {
        name: multiply for name, (multiply, _) in products.items()
    }
    seconds = alternate(turns, rounds, device)
    best = {name: flop / seconds[name] for name, (_, flop) in products.items()}  # FLOP/s, (rounds,)
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {}
    for name, run in runs.items():
        rate = run.batch / seconds[name]
        middle, share = float(np.median(rate)), ratio(rate * run.flop, best[f"product, {run.precision}"])
        times = ratio(rate, runs[REFERENCE].batch / seconds[REFERENCE]) if REFERENCE in runs else None
        figures[name] = {
            "precision": run.precision, "batch": run.batch, "gflop_per_image": run.flop / 1e9, "images_per_second": rate,
            "share_of_product": share, "times_reference": times,
        }  # fmt: skip
        rows.append(
            (name, run.precision, run.batch, f"{middle:,.1f}", f"{run.flop / 1e9:.3g}", f"{middle * run.flop / 1e9:,.0f}",
             f"{100 * share:.0f} %", f"{times:.2f}" if times else "")
        )  # fmt: skip
    rows += [(name, "", "", "", "", f"{np.median(rate) / 1e9:,.0f}", "", "") for name, rate in best.items()]
    return rows, figures | {name: {"flop_per_second": rate} for name, rate in best.items()}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="which trainings")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    o = parser.parse_args()
    p, device = load_params(), chosen_device()
    large = device.type != "cpu"
    make = partial(ours, p=p, device=device, eager=o.eager)
    makers: dict[str, Callable[[], list[Contestant]]] = {
        "default": lambda: make(p.model.model_dump(exclude={"labels"}), LATENT, [p.train.batch_size]),
        "dit-b2": lambda: [*make(DIT_B2, (4, 4), [32, 4096 if large else 256]), reference(device)],
        "tokens-256": lambda: make(DIT_B2, (4, 32), [256 if large else 4]),
    }
    rows: list[tuple[object, ...]] = []
    figures = {}
    for group in o.only:
        names = [group] if group != "dit-b2" else [f"{group}, small batch", group, REFERENCE]
        more, figures[group] = compare(dict(zip(names, makers[group](), strict=True)), o.rounds, device)
        rows += more
    columns = (
        "training",
        "precision",
        "batch",
        "images/s",
        "GFLOP an image",
        "GFLOP/s",
        "share of product",
        "× reference",
    )
    report("train", device, columns, rows, {"rounds": o.rounds, "compiled": not o.eager, **figures})


if __name__ == "__main__":
    main()

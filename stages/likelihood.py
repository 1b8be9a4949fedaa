"""How likely test images are under the flow, in bits per latent dimension → reports/likelihood.json."""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lfm import random
from lfm.model import Flow, check_latents, load_flow
from lfm.nets.latents import draw
from lfm.sampling.guidance import guided
from lfm.sampling.likelihood import exact_divergence, hutchinson_divergence, log_likelihood
from lfm.sampling.solver import time_grid
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import FLOW, LATENTS, LATENTS_FORMAT, LIKELIHOOD, write_json
from pipeline.machine import scratch
from pipeline.machine.runtime import device
from pipeline.machine.scratch import NOWHERE, Scratch
from pipeline.params import LikelihoodParams, Params
from pipeline.progress import Progress, say
from pipeline.run import run


def probes(p: LikelihoodParams, rows: range, shape: list[int]) -> Tensor:
    """A Rademacher probe a row: ±1, each with probability ½, (B, *shape)."""
    return random.normal_rows(p.seed, "probe", rows, shape).sign()


def of_rows(flow: Flow, latents: arrays.ArrayFile, rows: range, p: LikelihoodParams) -> dict[str, np.ndarray]:
    """Of some test images: log p(x1 | y) in nats (len(rows),), x1 a draw from the posterior, normalised."""
    where = next(flow.transformer.parameters()).device
    mean, std, y = (
        torch.from_numpy(latents.read(f"test/{name}", rows.start, rows.stop)) for name in ("mean", "std", "labels")
    )
    noise = random.normal_rows(p.seed, "posterior", rows, flow.shape)
    x1 = flow.scale.normalise(draw(mean, std, noise)).to(where)
    velocity = guided(flow.velocity, y.long().to(where), 1.0, flow.transformer.null_label)
    exact = p.divergence == "exact"
    divergence = exact_divergence if exact else hutchinson_divergence(probes(p, rows, flow.shape).to(where))
    grid = time_grid(p.steps, end=flow.end)
    return {"nats": log_likelihood(velocity, x1, grid, p.solver, divergence).cpu().numpy()}


def log_likelihoods(
    flow: Flow, latents: arrays.ArrayFile, n: int, p: LikelihoodParams, show: bool, saved: Scratch = NOWHERE
) -> np.ndarray:
    """Of the first n test images, batch by batch: log p(x1 | y) in nats (n,)."""
    found = []
    with Progress(n, "likelihood", "image", show) as progress:
        for start in range(0, n, p.batch_size):
            rows = range(start, min(start + p.batch_size, n))
            found.append(saved.part(f"images-{start}", partial(of_rows, flow, latents, rows, p))["nats"])
            progress.advance(len(rows))
    return np.concatenate(found)


def main(p: Params) -> None:
    flow = load_flow(FLOW, device())
    flow.transformer.requires_grad_(False)
    with arrays.reading(LATENTS, LATENTS_FORMAT) as latents:
        check_latents(flow, latents)
        n = min(p.likelihood.images, latents.shape("test/labels")[0])
        with scratch.opened() as saved:
            nats = log_likelihoods(flow, latents, n, p.likelihood, p.runtime.progress, saved)
    bits = -nats / math.log(2) / math.prod(flow.shape)
    result = {
        "bits_per_dim": round(float(bits.mean()), 5),
        "standard_error": round(float(bits.std(ddof=1) / math.sqrt(n)), 5) if n > 1 else 0.0,
        "images": n,
        "divergence": p.likelihood.divergence,
    }
    write_json(LIKELIHOOD, result)
    say(f"likelihood: {result['bits_per_dim']:.4f} ± {result['standard_error']:.4f} bits per latent dimension")


if __name__ == "__main__":
    run(main, "likelihood")

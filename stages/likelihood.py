"""How likely test images are under the flow, in bits per latent dimension → reports/likelihood.json."""

import math
from functools import partial

import numpy as np
import torch

from lfm import random
from lfm.model import LatentFlow
from lfm.nets.latents import draw
from pipeline.artifacts import hdf5, latents
from pipeline.artifacts.files import write_json
from pipeline.params import LikelihoodParams
from pipeline.progress import say
from pipeline.run import Context, run


def of_rows(model: LatentFlow, file: hdf5.ArrayFile, rows: range, p: LikelihoodParams) -> dict[str, np.ndarray]:
    """Of some test images: log p(x1 | y) in nats (len(rows),), x1 a draw from the posterior, normalised."""
    mean, std, y = (torch.from_numpy(file.read(f"test/{n}", rows.start, rows.stop)) for n in ("mean", "std", "labels"))
    noise = random.normal_rows(p.seed, "posterior", rows, model.latent_shape)
    x1 = model.scale.normalise(draw(mean, std, noise))
    labels = y if model.classes else None
    estimate = model.log_prob(
        x1, labels, divergence=p.divergence, probes=1, steps=p.steps, solver=p.solver, seed=p.seed, rows=rows
    )
    return {"nats": estimate.nats}


def log_likelihoods(context: Context, model: LatentFlow, file: hdf5.ArrayFile, n: int) -> np.ndarray:
    """Of the first n test images, batch by batch: log p(x1 | y) in nats (n,)."""
    p, nats = context.params.likelihood, []
    batches = (range(start, min(start + p.batch_size, n)) for start in range(0, n, p.batch_size))
    parts = {f"images-{rows.start}": partial(of_rows, model, file, rows, p) for rows in batches}
    context.share(parts, "likelihood")
    with context.progress(n, "likelihood", "image") as progress:
        for name, make in parts.items():
            nats.append(context.part(name, make)["nats"])
            progress.advance(len(nats[-1]))
    return np.concatenate(nats)


def main(context: Context) -> None:
    p = context.params.likelihood
    model = LatentFlow.from_pretrained(context.input("flow")).to(context.device)
    with hdf5.reading(context.input("latents"), latents.FORMAT) as file:
        latents.check_autoencoder(file, context.input("latents"), model.config["autoencoder_sha256"])
        n = min(p.images, file.shape("test/labels")[0])
        nats = log_likelihoods(context, model, file, n)
    bits = -nats / math.log(2) / math.prod(model.latent_shape)
    result = {
        "bits_per_dim": round(float(bits.mean()), 5),
        "standard_error": round(float(bits.std(ddof=1) / math.sqrt(n)), 5) if n > 1 else 0.0,
        "images": n,
        "divergence": p.divergence,
    }
    with context.publish("likelihood") as part:
        write_json(part, result)
    say(f"likelihood: {result['bits_per_dim']:.4f} ± {2 * result['standard_error']:.4f} bits per latent dimension")


if __name__ == "__main__":
    run(main)

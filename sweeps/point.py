"""Quality against cost, one point a run. `dvc repro sweeps/dvc.yaml` runs them all.

python -m sweeps.point NAME SOLVER EVALUATIONS GUIDANCE → sweeps/points/NAME.json; "default" stands for what params.yaml says.
dopri5, which chooses its own evaluations, takes a tolerance in their place.
"""

from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from lfm.errors import ConfigError
from lfm.evaluation.metrics import frechet_distance
from lfm.model import LatentFlow
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.weights import load_model
from lfm.sampling.sampler import Sampler
from lfm.sampling.solver import FIXED_STEP
from pipeline.artifacts import hdf5, images
from pipeline.artifacts.files import write_json
from pipeline.errors import UserError
from pipeline.run import Context, run

PIPELINE = Path("sweeps/dvc.yaml")
POINTS = Path("sweeps/points")
IMAGES_A_POINT = 2000  # a point is compared with other points alone, and they all have as many
COST = {name: solver.evaluations for name, solver in FIXED_STEP.items()} | {"euler_maruyama": 1}  # evaluations a step


def changed(default: Sampler, solver: str, evaluations: str, guidance: str) -> Sampler:
    """The sampler of a point."""
    sampler = default
    if solver == "dopri5":
        sampler = sampler._replace(solver=solver, rtol=float(evaluations), atol=float(evaluations) / 10)
    elif solver != "default":
        if solver not in COST or not evaluations.isdigit() or int(evaluations) % COST[solver]:
            raise UserError(
                f"{PIPELINE}: solver '{solver}' with {evaluations} evaluations; it must be one of {', '.join(COST)}, with a "
                f"multiple of what it evaluates a step ({list(COST.values())})"
            )
        sampler = sampler._replace(solver=solver, steps=int(evaluations) // COST[solver])
    sampler = sampler if guidance == "default" else sampler._replace(guidance_scale=float(guidance))
    try:
        return sampler.check()
    except ConfigError as error:
        raise UserError(f"{PIPELINE}: {error}") from error


@torch.inference_mode()
def features(classifier: Classifier, pictures: np.ndarray) -> torch.Tensor:
    device = next(classifier.parameters()).device
    parts = torch.from_numpy(pictures).split(500)
    return torch.cat([classifier.features(to_pixels(part.to(device))).cpu() for part in parts])


def main(words: tuple[str, str, str], name: str, context: Context) -> None:
    p = context.params.sample
    model = LatentFlow.from_pretrained(context.input("latent_flow")).to(context.device)
    sampler = changed(model.sampler, *words)
    classifier = load_model(context.input("classifier"), Classifier).to(context.device)
    with hdf5.reading(context.input("images"), images.FORMAT) as file:
        test, labels = (file.read(f"test/{a}") for a in ("images", "labels"))
        real = file.read("validation/images", 0, IMAGES_A_POINT)
    n = min(IMAGES_A_POINT, len(labels))
    drawn = model.sample(
        labels[:n], seed=p.seed, sampler=sampler, output_type="np", batch_size=p.batch_size, precision=p.precision
    )
    generated, reference = features(classifier, np.asarray(drawn.images)), features(classifier, test)
    with torch.inference_mode():
        recognised = classifier.head(generated.to(context.device)).argmax(1).cpu().numpy()
    with context.publish(POINTS / f"{name}.json") as part:
        write_json(
            part,
            {
                "solver": sampler.solver,
                "guidance": sampler.guidance_scale,
                "evaluations": drawn.nfe,
                "fd": frechet_distance(generated, reference),
                "fd_validation": frechet_distance(features(classifier, real), reference),
                "accuracy": 100 * float((recognised == labels[:n]).mean()),
                "images": n,
            },
        )


@click.command(help=__doc__)
@click.argument("name")
@click.argument("solver")
@click.argument("evaluations")
@click.argument("guidance")
def command(name: str, solver: str, evaluations: str, guidance: str) -> None:
    run(partial(main, (solver, evaluations, guidance), name), "cost", PIPELINE)  # every kind of point has the same deps


if __name__ == "__main__":
    command()

"""Quality against cost, several points a run. `dvc repro sweeps/dvc.yaml` runs them all.

\b
python -m sweeps.points cost SOLVER EVALUATIONS...    → sweeps/points/SOLVER.json
python -m sweeps.points guidance NAME SCALE...        → sweeps/points/NAME.json

dopri5, which chooses its own evaluations, takes tolerances in their place. The scale "default" is that of params.yaml.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
DEFAULT = "default"
IMAGES_A_POINT = 2000  # a point is compared with other points alone, and they all have as many
COST = {name: solver.evaluations for name, solver in FIXED_STEP.items()} | {"euler_maruyama": 1, "flow_map": 1}


def of_solver(default: Sampler, solver: str, number: str) -> Sampler:
    """The sampler of a point: a solver with so many evaluations, or with this tolerance."""
    try:
        if solver == "dopri5":
            return default._replace(solver=solver, rtol=float(number), atol=float(number) / 10).check()
        if solver not in COST or not number.isdecimal() or int(number) % COST[solver]:
            raise UserError(
                f"{PIPELINE}: solver '{solver}' with {number} evaluations; it must be one of {', '.join(COST)}, with a "
                f"multiple of what it evaluates a step ({list(COST.values())})"
            )
        return default._replace(solver=solver, steps=int(number) // COST[solver]).check()
    except (ConfigError, ValueError) as error:
        raise UserError(f"{PIPELINE}: {error}") from error


def of_scale(default: Sampler, scale: str) -> Sampler:
    """The sampler of a point: the default one with this guidance scale."""
    try:
        return (default if scale == DEFAULT else default._replace(guidance_scale=float(scale))).check()
    except (ConfigError, ValueError) as error:
        raise UserError(f"{PIPELINE}: {error}") from error


@torch.inference_mode()
def features(classifier: Classifier, pictures: np.ndarray) -> torch.Tensor:
    device = next(classifier.parameters()).device
    parts = torch.from_numpy(pictures).split(500)
    return torch.cat([classifier.features(to_pixels(part.to(device))).cpu() for part in parts])


def main(kind: str, name: str, numbers: Sequence[str], context: Context) -> None:
    p = context.params.sample
    model = LatentFlow.from_pretrained(context.input("latent_flow")).to(context.device)
    if kind == "cost":
        samplers = [of_solver(model.sampler, name, number) for number in numbers]
    else:
        samplers = [of_scale(model.sampler, scale) for scale in numbers]
    classifier = load_model(context.input("classifier"), Classifier).to(context.device)
    with hdf5.reading(context.input("images"), images.FORMAT) as file:
        labels = file.read("test/labels")[:IMAGES_A_POINT]
        real = features(classifier, file.read("validation/images"))
        test = frechet_distance(features(classifier, file.read("test/images", 0, IMAGES_A_POINT)), real)

    def drawn(sampler: Sampler) -> dict[str, np.ndarray]:
        made = model.sample(
            labels if model.classes else None, 1 if model.classes else len(labels), seed=p.seed, sampler=sampler,
            output_type="np", batch_size=p.batch_size, precision=p.precision,
        )  # fmt: skip
        return {"images": np.asarray(made.images), "passes": np.array(made.nfe)}

    def point(sampler: Sampler, number: str) -> dict[str, Any]:
        part = context.part(f"{name}-{number}", partial(drawn, sampler))
        generated = features(classifier, part["images"])
        with torch.inference_mode():
            recognised = classifier.head(generated.to(context.device)).argmax(1).cpu().numpy()
        return {
            "solver": sampler.solver,
            "guidance": sampler.guidance_scale,
            "evaluations": float(part["passes"]),
            "fd": frechet_distance(generated, real),
            "fd_test": test,
            "accuracy": 100 * float((recognised == labels).mean()),
            "images": len(labels),
            "default": int(sampler == model.sampler),
        }

    points = [point(sampler, number) for sampler, number in zip(samplers, numbers, strict=True)]
    with context.publish(POINTS / f"{name}.json") as path:
        write_json(path, {"points": points})


@click.command(help=__doc__)
@click.argument("kind", type=click.Choice(["cost", "guidance"]))
@click.argument("name")
@click.argument("numbers", nargs=-1, required=True)
def command(kind: str, name: str, numbers: tuple[str, ...]) -> None:
    run(partial(main, kind, name, numbers), kind, PIPELINE)


if __name__ == "__main__":
    command()

"""Not a stage of the pipeline: quality against cost, one point a run. `dvc repro sweeps/dvc.yaml` runs them all.

python -m sweeps.point NAME SOLVER EVALUATIONS GUIDANCE → sweeps/points/NAME.json; "default" stands for what params.yaml says.
dopri5, which chooses its own evaluations, takes a tolerance in their place.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lfm.generator import batches, load_generator
from pipeline.machine.runtime import device

from lfm.evaluation.metrics import frechet_distance
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import AUTOENCODER, CLASSIFIER, FLOW, IMAGES, IMAGES_FORMAT, write_json
from pipeline.errors import UserError
from pipeline.params import Params, validate_params
from pipeline.run import run

POINTS = Path("sweeps/points")
IMAGES_A_POINT = 2000  # a point is compared with other points alone, and they all have as many
COST = {"euler": 1, "euler_maruyama": 1, "midpoint": 2, "heun": 2, "rk4": 4}  # evaluations a step


def changed(p: Params, solver: str, evaluations: str, guidance: str) -> Params:
    """The parameters of a point, validated."""
    changes: dict[str, object] = {}
    if solver == "dopri5":
        changes |= {"solver": solver, "rtol": float(evaluations), "atol": float(evaluations) / 10}
    elif solver != "default":
        if solver not in COST or not evaluations.isdigit() or int(evaluations) % COST[solver]:
            raise UserError(
                f"sweeps/dvc.yaml: solver '{solver}' with {evaluations} evaluations; it must be one of "
                f"{', '.join(COST)}, with a multiple of what it evaluates a step ({list(COST.values())})"
            )
        changes |= {"solver": solver, "steps": int(evaluations) // COST[solver]}
    if guidance != "default":
        changes["guidance_scale"] = float(guidance)
    tree = p.model_dump()
    return validate_params(tree | {"sample": tree["sample"] | changes}, "sweeps/dvc.yaml")


@torch.inference_mode()
def features(classifier: Classifier, images: np.ndarray) -> torch.Tensor:
    where = next(classifier.parameters()).device
    return torch.cat([classifier.features(to_pixels(x.to(where))).cpu() for x in torch.from_numpy(images).split(500)])


def main(p: Params) -> None:
    name, *words = sys.argv[1:]
    p = changed(p, *words)
    generator = load_generator(FLOW, AUTOENCODER, p.sample)
    classifier = load_model(CLASSIFIER, Classifier).to(device())
    with arrays.reading(IMAGES, IMAGES_FORMAT) as file:
        test, labels = (file.read(f"test/{a}") for a in ("images", "labels"))
        real = file.read("validation/images", 0, IMAGES_A_POINT)
    n, parts, padded = min(IMAGES_A_POINT, len(labels)), [], 0
    for count, rows in batches(n, p.sample.batch_size):
        padded += len(rows)
        parts.append(generator.decode(generator.integrate(rows, labels[rows]).x[-1])[:count])
    drawn, reference = features(classifier, np.concatenate(parts)), features(classifier, test)
    with torch.inference_mode():
        recognised = classifier.head(drawn.to(device())).argmax(1).cpu().numpy()
    POINTS.mkdir(parents=True, exist_ok=True)
    write_json(
        POINTS / f"{name}.json",
        {
            "solver": p.sample.solver,
            "guidance": p.sample.guidance_scale,
            "evaluations": generator.passes / padded,
            "fd": frechet_distance(drawn, reference),
            "fd_validation": frechet_distance(features(classifier, real), reference),
            "accuracy": 100 * float((recognised == labels[:n]).mean()),
            "images": n,
        },
    )


if __name__ == "__main__":
    run(main, "sample", of=("sweeps/dvc.yaml", "cost"))  # every kind of point has the same deps

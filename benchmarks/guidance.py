"""What guidance does, and how few evaluations the flow can do with: distance to the *validation* images, by both classifiers and
in pixels, for scales and intervals of classifier-free guidance and of autoguidance. The tables stand in docs/ablations.md.

After `dvc repro`: python -m benchmarks.guidance [scales | few] [NUMBER ...], of the rows, by default all
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from lfm.evaluation.metrics import frechet, moments
from lfm.evaluation.neighbours import manifolds
from lfm.evaluation.protocol import Settings, flat, look, rule
from lfm.model import LatentFlow
from lfm.nets.classifier import Classifier
from lfm.nets.weights import load_model
from lfm.sampling.solver import FIXED_STEP
from pipeline.artifacts import hdf5, images
from pipeline.params import load_params

MODELS = Path("models")
CLASSIFIERS = ("classifier", "second_classifier")
NO: dict[str, Any] = {"guidance_scale": 1.0, "autoguidance_scale": 1.0}
CFG: dict[str, Any] = {"guidance_scale": 2.2, "guidance_interval": (0.5, 0.9)}
AUTO: dict[str, Any] = {"autoguidance_scale": 2.0, "autoguidance_interval": (0, 1)}
SCALES: list[dict[str, Any]] = [
    NO,
    NO | {"guidance_scale": 3.0, "guidance_interval": (0.6, 0.9)},
    NO | AUTO,
    AUTO | CFG,
    AUTO | CFG | {"guidance_scale": 2.0},
    AUTO | CFG | {"autoguidance_scale": 1.5},
    AUTO | CFG | {"guidance_scale": 2.0, "autoguidance_scale": 1.5},
    AUTO | CFG | {"guidance_scale": 2.0, "autoguidance_interval": (0, 0.5)},
]


def few(steps: int, solver: str = "midpoint", **guidance: Any) -> dict[str, Any]:
    """A row: no guidance but what is given."""
    return NO | {"solver": solver, "steps": steps} | guidance


FEW = [
    few(2),
    few(2, guidance_scale=1.5, guidance_interval=(0.7, 0.8)),
    few(2, guidance_scale=1.5, guidance_interval=(0.7, 0.8), autoguidance_scale=2.0, autoguidance_interval=(0.2, 0.8)),
    few(3),
    few(3, guidance_scale=1.5, guidance_interval=(0.8, 0.9)),
    few(3, guidance_scale=1.5, guidance_interval=(0.8, 0.9), **AUTO),
    few(4),
    few(4, guidance_scale=1.9, guidance_interval=(0.6, 0.9)),
    few(4, guidance_scale=1.9, guidance_interval=(0.5, 0.9), autoguidance_scale=2.0, autoguidance_interval=(0, 0.5)),
    few(4, guidance_scale=1.9, guidance_interval=(0.5, 0.9), **AUTO),
    *(
        few(8 // solver.evaluations, name, guidance_scale=1.9, guidance_interval=(0.5, 0.9), **AUTO)
        for name, solver in FIXED_STEP.items()
        if name != "midpoint"
    ),
]
TABLES = {"scales": SCALES, "few": FEW}
COLUMNS = (
    "solver",
    "guidance",
    "autoguidance",
    "distance",
    "by the second classifier",
    "of pixels",
    "accuracy",
    "recall",
    "passes",
)


def main() -> None:
    p = load_params().evaluate
    settings = Settings(p.seed, p.kid_blocks, p.neighbours, p.pixel_components)
    model = LatentFlow.from_pretrained(MODELS / "latent_flow")
    judges = {name: load_model(MODELS / name, Classifier) for name in CLASSIFIERS}
    with hdf5.reading(Path("data/images.h5"), images.FORMAT) as file:
        real = {split: (file.read(f"{split}/images"), file.read(f"{split}/labels")) for split in ("validation", "test")}
        components = PCA(p.pixel_components, svd_solver="covariance_eigh").fit(flat(file.read("train/images")))
    views = {name: {split: look(judge, *of) for split, of in real.items()} for name, judge in judges.items()}
    floors = {name: rule(seen, settings)["validation"].fd for name, seen in views.items()}
    pixels = {split: moments(components.transform(flat(of[0]))) for split, of in real.items()}
    floor_of_pixels = frechet(pixels["validation"], pixels["test"])
    labels = real["test"][1]

    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    table, *numbers = sys.argv[1:] or ["scales"]
    for row in [TABLES[table][int(n)] for n in numbers] or TABLES[table]:
        sampler = model.sampler._replace(**row)
        drawn = model.sample(labels, seed=0, sampler=sampler, output_type="np", batch_size=500, precision="auto")
        generated = np.asarray(drawn.images)
        seen = {name: look(judge, generated, labels) for name, judge in judges.items()}
        ruled = {
            name: rule({"generated": view, "test": views[name]["validation"]}, settings)["generated"]
            for name, view in seen.items()
        }
        first, second = (ruled[name] for name in CLASSIFIERS)
        in_pixels = frechet(moments(components.transform(flat(generated))), pixels["validation"])
        nearby = manifolds(views["classifier"]["validation"].features, seen["classifier"].features, p.neighbours)
        cells = [f"{sampler.solver} {sampler.steps}"]
        cells += [
            f"{guidance.scale:g} in {[*guidance.interval]}" if guidance.scale != 1 else "none"
            for guidance in (sampler.by_labels, sampler.by_weak)
        ]
        floor = floors["classifier"]
        cells += [f"{first.fd / floor:.2f} ± {2 * first.fd_error / floor:.2f}"]
        cells += [f"{second.fd / floors['second_classifier']:.2f}", f"{in_pixels / floor_of_pixels:.2f}"]
        cells += [f"{first.accuracy:.2f} %", f"{100 * nearby.recall:.1f} %", f"{drawn.nfe:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

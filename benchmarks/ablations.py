"""What the flow's defaults rest on: each choice undone by itself, with several seeds, as validation loss and as distance to the
*validation* images. The table stands in docs/ablations.md.

After `dvc repro`: python -m benchmarks.ablations [--seeds 3] [--steps 1500] [--jobs 1] [NAME ...]
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lfm.evaluation.metrics import frechet_distance
from lfm.model import LatentFlow
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5, images
from pipeline.artifacts.files import read_json
from tools.compare import compare, interval, spread
from tools.workspace import make_workspace

IMAGES, LATENTS = Path("data/images.h5"), Path("data/latents.h5")
AUTOENCODER, CLASSIFIER, FLOW = (Path("models") / name for name in ("autoencoder", "classifier", "flow"))
FOLDER = Path("ablations")
FLOW_ALONE = (
    "-S train.snapshots=[1] -S train.weak_steps=null -S sample.autoguidance_scale=1 -S distill.autoguidance_scale=1"
)
BASELINE = "params.yaml"
VARIANTS = {  # flags, and how many of the steps: those of another size cost as many operations as the others
    BASELINE: ("", 1.0),
    "model.block: dit": ("-S model.block=dit", 1.0),
    "flow.times: stratified": ("-S flow.times=stratified", 1.0),
    "flow.path: gvp": ("-S flow.path=gvp", 1.0),
    "flow.coupling: ot": ("-S flow.coupling=ot", 1.0),
    "model.width: 192": ("-S model.width=192 -S model.heads=3", (128 / 192) ** 2),
    "model.width: 96": ("-S model.width=96 -S model.heads=2", (128 / 96) ** 2),
    "model.patch_size: 1": ("-S model.patch_size=1", 1 / 4),
}


class Figures(NamedTuple):
    """Of one training."""

    loss: float  # validation loss
    distance: float  # to the validation images, in units of the floor
    accuracy: float  # percent


BETTER = (-1, -1, 1)  # less loss, less distance, more accuracy


class Reference:
    """The bundled classifier, and the real images that others are compared with."""

    def __init__(self) -> None:
        self.classifier = load_model(CLASSIFIER, Classifier)
        with hdf5.reading(IMAGES, images.FORMAT) as file:
            self.images = {split: file.read(f"{split}/images") for split in ("validation", "test")}
            self.labels = {split: file.read(f"{split}/labels") for split in self.images}
        self.real = {split: self.features(pictures) for split, pictures in self.images.items()}
        self.floor = frechet_distance(self.real["validation"], self.real["test"])

    @torch.no_grad()
    def features(self, pictures: np.ndarray) -> torch.Tensor:
        return torch.cat([self.classifier.features(to_pixels(part)) for part in torch.from_numpy(pictures).split(500)])

    def measure(self, pictures: np.ndarray, labels: np.ndarray, split: str) -> tuple[float, float]:
        """Distance to real images in units of the floor, and how many percent of the labels are recognised."""
        features = self.features(pictures)
        right = (self.classifier.head(features).argmax(1).numpy() == labels).mean()
        return frechet_distance(features, self.real[split]) / self.floor, 100 * float(right)

    def cell(self, pictures: np.ndarray, labels: np.ndarray, split: str) -> str:
        return "{:.2f} × / {:.2f} %".format(*self.measure(pictures, labels, split))

    def generated(self, model: LatentFlow, scale: float = 1.0, interval: tuple[float, float] = (0, 1)) -> np.ndarray:
        """As many images as there are of the test set, with its labels, in eight steps of the midpoint rule."""
        drawn = model.sample(
            self.labels["test"], seed=0, solver="midpoint", steps=8, guidance_scale=scale, guidance_interval=interval,
            output_type="np", batch_size=500, precision="auto",
        )  # fmt: skip
        return np.asarray(drawn.images)


def train(name: str, flags: str, stages: Sequence[str], source: Path, threads: int | None = None) -> Path:
    """Run some stages with changed parameters in a workspace of their own, on the artifact `source` of this one. Returns the
    workspace."""
    workspace, preset = FOLDER / name, FOLDER / f"{name}.preset"
    FOLDER.mkdir(exist_ok=True)
    preset.write_text(flags, encoding="utf-8")
    make_workspace(Path(), workspace, preset)
    (workspace / source).parent.mkdir(exist_ok=True)
    (workspace / source).unlink(missing_ok=True)
    (workspace / source).symlink_to(source.resolve())
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    for stage in stages:
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=workspace, check=True, env=environment)
    return workspace


def figures(reference: Reference, name: str, steps: int, seed: int, threads: int) -> Figures:
    """A variant, trained with a seed and measured without guidance."""
    changes, share = VARIANTS[name]
    flags = f"{FLOW_ALONE} -S train.steps={round(share * steps)} -S train.seed={seed} {changes}"
    folder = "".join(c if c.isalnum() else "-" for c in f"{name}-{seed}")
    workspace = train(folder, flags, ["train"], LATENTS, threads)
    loss = read_json(workspace / FLOW / "record.json", validation_loss=float)["validation_loss"]
    model = LatentFlow.from_pretrained(workspace / FLOW, autoencoder=AUTOENCODER)
    return Figures(loss, *reference.measure(reference.generated(model), reference.labels["test"], "validation"))


def header(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def row(name: str, of_seeds: Sequence[Figures], baseline: Sequence[Figures]) -> str:
    """Mean ± sd over seeds of each figure, and behind it the difference to the baseline, paired by seed."""
    cells = [name, str(len(of_seeds))]
    for values, others, sign in zip(zip(*of_seeds, strict=True), zip(*baseline, strict=True), BETTER, strict=True):
        cells.append(spread(values))
        difference = compare([a - b for a, b in zip(values, others, strict=True)])
        cells.append("" if name == BASELINE else f"{interval(difference)}: {difference.word(sign)}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    parser.add_argument("--steps", type=int, default=1500, help="of a training of the default's size")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(VARIANTS)}; all by default")
    o = parser.parse_args()
    names = [BASELINE, *(name for name in o.names or VARIANTS if name != BASELINE)]
    threads = max(1, (os.cpu_count() or 1) // o.jobs)
    torch.set_num_threads(threads)
    reference, done = Reference(), dict[str, list[Future[Figures]]]()
    with ThreadPoolExecutor(o.jobs) as pool:
        for name in names:
            done[name] = [pool.submit(figures, reference, name, o.steps, seed, threads) for seed in range(o.seeds)]
        columns = ("validation loss", "distance", "accuracy, %")
        header("variant", "seeds", *(cell for column in columns for cell in (column, "difference [95 %]")))
        for name, runs in done.items():
            print(row(name, [run.result() for run in runs], [run.result() for run in done[BASELINE]]), flush=True)


if __name__ == "__main__":
    main()

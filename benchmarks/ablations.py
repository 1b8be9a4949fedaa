"""What was tried for the default flow: validation loss, and distance to the *validation* images, of variants trained for the
same number of steps. The table stands in docs/ablations.md.

After `dvc repro`: python -m benchmarks.ablations [NAME ...]
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lfm.generator import Generator, batches, load_generator

from lfm.evaluation.metrics import frechet_distance
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import AUTOENCODER, CLASSIFIER, FLOW, IMAGES, IMAGES_FORMAT, LATENTS, read_json
from pipeline.params import SampleParams, load_params
from tools.workspace import make_workspace

FOLDER = Path("ablations")
FLOW_OF_4000 = "-S train.steps=4000 -S train.snapshots=[1]"
OLD = "-S model.block=dit -S flow.times=stratified"
VARIANTS = {
    "dit": OLD,
    "dit, gvp": f"{OLD} -S flow.path=gvp",
    "dit, optimal transport": f"{OLD} -S flow.coupling=ot",
    "dit, logit-normal": "-S model.block=dit",
    "modern": "-S flow.times=stratified",
    "modern, logit-normal": "",
}
GUIDANCE: list[tuple[float, list[float]]] = [(1.0, [0, 1]), (1.1, [0, 1]), (1.3, [0.4, 0.8])]


class Ruler:
    """The bundled classifier, and the real images that others are compared with."""

    def __init__(self) -> None:
        self.classifier = load_model(CLASSIFIER, Classifier)
        with arrays.reading(IMAGES, IMAGES_FORMAT) as file:
            self.images = {split: file.read(f"{split}/images") for split in ("validation", "test")}
            self.labels = {split: file.read(f"{split}/labels") for split in self.images}
        self.real = {split: self.features(images) for split, images in self.images.items()}
        self.floor = frechet_distance(self.real["validation"], self.real["test"])

    @torch.no_grad()
    def features(self, images: np.ndarray) -> torch.Tensor:
        return torch.cat([self.classifier.features(to_pixels(part)) for part in torch.from_numpy(images).split(500)])

    def cell(self, images: np.ndarray, labels: np.ndarray, reference: str) -> str:
        """Distance to real images in units of the floor, and how many labels are recognised."""
        seen = self.features(images)
        right = (self.classifier.head(seen).argmax(1).numpy() == labels).mean()
        return f"{frechet_distance(seen, self.real[reference]) / self.floor:.2f} × / {100 * right:.2f} %"

    def of_generated(self, generator: Generator) -> str:
        """The same of as many generated images, against validation images."""
        labels = self.labels["test"]
        parts = [generator.decode(generator.integrate(r, labels[r]).x[-1])[:n] for n, r in batches(len(labels), 500)]
        return self.cell(np.concatenate(parts), labels, "validation")


def train(name: str, flags: str, stages: Sequence[str], given: Path) -> tuple[Path, float]:
    """Run some stages with changed parameters in a workspace of their own, on the artifact `given` of this one. Returns the
    workspace, and the seconds of its last stage."""
    workspace, preset = FOLDER / name, FOLDER / f"{name}.preset"
    FOLDER.mkdir(exist_ok=True)
    preset.write_text(flags)
    make_workspace(Path(), workspace, preset)
    (workspace / given).parent.mkdir(exist_ok=True)
    (workspace / given).unlink(missing_ok=True)
    (workspace / given).symlink_to(given.resolve())
    seconds = 0.0
    for stage in stages:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=workspace, check=True)
        seconds = time.monotonic() - began
    return workspace, seconds


def guided(scale: float, interval: list[float]) -> SampleParams:
    """How to sample, with another guidance."""
    base = load_params(Path("params.yaml")).sample
    return SampleParams(**(base.model_dump() | {"guidance_scale": scale, "guidance_interval": interval}))


def header(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def main() -> None:
    ruler = Ruler()
    header("variant", "seconds", "validation loss", *(f"g = {scale:g} in {interval}" for scale, interval in GUIDANCE))
    for name in sys.argv[1:] or VARIANTS:
        workspace, seconds = train(name, f"{FLOW_OF_4000} {VARIANTS[name]}", ["train"], LATENTS)
        loss = read_json(workspace / FLOW / "record.json", validation_loss=float)["validation_loss"]
        made = (load_generator(workspace / FLOW, AUTOENCODER, guided(*g)) for g in GUIDANCE)
        cells = " | ".join(ruler.of_generated(generator) for generator in made)
        print(f"| {name} | {seconds:.0f} | {loss:.4f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

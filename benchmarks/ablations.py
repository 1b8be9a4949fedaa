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

from lfm.evaluation.metrics import frechet_distance
from lfm.model import LatentFlow
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5, images
from pipeline.artifacts.files import read_json
from tools.workspace import make_workspace

IMAGES, LATENTS = Path("data/images.h5"), Path("data/latents.h5")
AUTOENCODER, CLASSIFIER, FLOW = (Path("models") / name for name in ("autoencoder", "classifier", "flow"))
FOLDER = Path("ablations")
FLOW_OF_4000 = (
    "-S train.steps=4000 -S train.snapshots=[1] -S train.weak_steps=null -S sample.autoguidance_scale=1 "
    "-S distill.autoguidance_scale=1"
)
OLD = "-S model.block=dit -S flow.times=stratified"
VARIANTS = {
    "dit": OLD,
    "dit, gvp": f"{OLD} -S flow.path=gvp",
    "dit, optimal transport": f"{OLD} -S flow.coupling=ot",
    "dit, logit-normal": "-S model.block=dit",
    "modern": "-S flow.times=stratified",
    "modern, logit-normal": "",
}
GUIDANCE: list[tuple[float, tuple[float, float]]] = [(1.0, (0, 1)), (1.1, (0, 1)), (1.3, (0.4, 0.8))]


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

    def cell(self, pictures: np.ndarray, labels: np.ndarray, split: str) -> str:
        """Distance to real images in units of the floor, and how many labels are recognised."""
        features = self.features(pictures)
        right = (self.classifier.head(features).argmax(1).numpy() == labels).mean()
        return f"{frechet_distance(features, self.real[split]) / self.floor:.2f} × / {100 * right:.2f} %"

    def of_generated(self, model: LatentFlow, scale: float, interval: tuple[float, float]) -> str:
        """The same of as many generated images, against validation images."""
        labels = self.labels["test"]
        drawn = model.sample(
            labels, seed=0, guidance_scale=scale, guidance_interval=interval, output_type="np", batch_size=500,
            precision="auto",
        )  # fmt: skip
        return self.cell(np.asarray(drawn.images), labels, "validation")


def train(name: str, flags: str, stages: Sequence[str], source: Path) -> tuple[Path, float]:
    """Run some stages with changed parameters in a workspace of their own, on the artifact `source` of this one. Returns the
    workspace, and the seconds of its last stage."""
    workspace, preset = FOLDER / name, FOLDER / f"{name}.preset"
    FOLDER.mkdir(exist_ok=True)
    preset.write_text(flags, encoding="utf-8")
    make_workspace(Path(), workspace, preset)
    (workspace / source).parent.mkdir(exist_ok=True)
    (workspace / source).unlink(missing_ok=True)
    (workspace / source).symlink_to(source.resolve())
    seconds = 0.0
    for stage in stages:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=workspace, check=True)
        seconds = time.monotonic() - began
    return workspace, seconds


def header(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def main() -> None:
    reference = Reference()
    header("variant", "seconds", "validation loss", *(f"g = {scale:g} in {interval}" for scale, interval in GUIDANCE))
    for name in sys.argv[1:] or VARIANTS:
        workspace, seconds = train(name, f"{FLOW_OF_4000} {VARIANTS[name]}", ["train"], LATENTS)
        loss = read_json(workspace / FLOW / "record.json", validation_loss=float)["validation_loss"]
        model = LatentFlow.from_pretrained(workspace / FLOW, autoencoder=AUTOENCODER)
        cells = " | ".join(reference.of_generated(model, *guidance) for guidance in GUIDANCE)
        print(f"| {name} | {seconds:.0f} | {loss:.4f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

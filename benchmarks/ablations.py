"""What was tried for the default flow: validation loss, and distance to the *validation* images, of variants trained for the
same number of steps. The table stands in docs/ablations.md.

After `dvc repro`: python -m benchmarks.ablations [NAME ...]
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lfm.classifier import Classifier, to_pixels
from lfm.metrics import frechet_distance
from lfm.weights import load_model
from pipeline import arrays
from pipeline.files import AUTOENCODER, CLASSIFIER, FLOW, IMAGES, IMAGES_FORMAT, LATENTS, read_json
from pipeline.params import SampleParams, load_params
from pipeline.workspace import make_workspace
from stages.generator import batches, load_generator

FOLDER = Path("ablations")
COMMON = "-S train.steps=4000 -S train.snapshots=[1]"
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


@torch.no_grad()
def features(classifier: Classifier, images: np.ndarray) -> torch.Tensor:
    return torch.cat([classifier.features(to_pixels(part)) for part in torch.from_numpy(images).split(500)])


def train(name: str, flags: str) -> tuple[Path, float]:
    """Train a variant in a workspace of its own. Returns its folder and how many seconds that took."""
    FOLDER.mkdir(exist_ok=True)
    preset, workspace = FOLDER / f"{name}.preset", FOLDER / name
    preset.write_text(f"{COMMON} {flags}")
    make_workspace(Path(), workspace, preset)
    (workspace / LATENTS).parent.mkdir(exist_ok=True)
    (workspace / LATENTS).unlink(missing_ok=True)
    (workspace / LATENTS).symlink_to(LATENTS.resolve())
    began = time.monotonic()
    subprocess.run(shlex.split(f"{sys.executable} -m stages.train"), cwd=workspace, check=True)
    return workspace / FLOW, time.monotonic() - began


def main() -> None:
    classifier = load_model(CLASSIFIER, Classifier)
    with arrays.reading(IMAGES, IMAGES_FORMAT) as file:
        validation, test = (features(classifier, file.read(f"{split}/images")) for split in ("validation", "test"))
        labels = file.read("test/labels")
    floor, base = frechet_distance(validation, test), load_params(Path("params.yaml")).sample
    header = [f"g = {scale:g} in {interval}" for scale, interval in GUIDANCE]
    print(f"| variant | seconds | validation loss | {' | '.join(header)} |\n|---|---|---|{'---|' * len(header)}")
    for name in sys.argv[1:] or VARIANTS:
        flow, seconds = train(name, VARIANTS[name])
        loss = read_json(flow / "record.json", validation_loss=float)["validation_loss"]
        cells = []
        for scale, interval in GUIDANCE:
            p = SampleParams(**(base.model_dump() | {"guidance_scale": scale, "guidance_interval": interval}))
            generator = load_generator(flow, AUTOENCODER, p)
            parts = [
                generator.decode(generator.integrate(r, labels[r]).x[-1])[:n] for n, r in batches(len(labels), 500)
            ]
            seen = features(classifier, np.concatenate(parts))
            right = (classifier.head(seen).argmax(1).numpy() == labels).mean()
            cells.append(f"{frechet_distance(seen, validation) / floor:.2f} × / {100 * right:.2f} %")
        print(f"| {name} | {seconds:.0f} | {loss:.4f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Figures and pictures of what was generated → reports/."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lfm.classifier import Classifier, to_pixels
from lfm.metrics import frechet_distance
from lfm.psnr import psnr
from lfm.weights import load_model
from pipeline import arrays
from pipeline.files import (
    CLASSIFIER,
    FLOW,
    IMAGES,
    IMAGES_FORMAT,
    METRICS,
    REPORTS,
    SAMPLES,
    SAMPLES_FORMAT,
    read_json,
    write_csv,
    write_json,
)  # fmt: skip
from pipeline.params import Params
from pipeline.pictures import sheet
from pipeline.report import Progress, say
from pipeline.runtime import device
from stages.cli import run

GRID = 10


class Measured(NamedTuple):
    """One set of images as the classifier sees it."""

    features: Tensor  # (N, 128)
    correct: np.ndarray  # (N,) bool: was the label recognised?
    labels: np.ndarray  # (N,)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@torch.inference_mode()
def measure(classifier: Classifier, images: np.ndarray, labels: np.ndarray, batch: int, progress: Progress) -> Measured:
    """Features and verdicts, in float32."""
    where = next(classifier.parameters()).device
    parts = []
    for part in torch.from_numpy(images).split(batch):
        parts.append(classifier.features(to_pixels(part.to(where))).cpu())
        progress.advance(len(part))
    features = torch.cat(parts)
    guesses = classifier.head(features.to(where)).argmax(1).cpu().numpy()
    return Measured(features, guesses == labels, labels)


def figures(sets: dict[str, Measured]) -> tuple[dict[str, float], list[tuple[object, ...]]]:
    """The four rows (what is compared with what, its Fréchet distance, in units of the floor) and the accuracies."""
    pairs = {
        "fd_validation": ("validation", "test"),  # the floor: two sets of real images
        "fd_reconstructed": ("reconstructed", "test"),  # what the autoencoder allows
        "fd_generated": ("generated", "test"),
        "fd_generated_reconstructed": ("generated", "reconstructed"),  # what the flow itself costs
    }
    distances = {name: frechet_distance(sets[a].features, sets[b].features) for name, (a, b) in pairs.items()}
    floor = distances["fd_validation"]
    rows: list[tuple[object, ...]] = [
        (f"{a} against {b}", distances[n], distances[n] / floor) for n, (a, b) in pairs.items()
    ]
    metrics = {name: round(d, 5) for name, d in distances.items()}
    metrics |= {f"{n}_vs_floor": round(distances[n] / floor, 3) for n in ("fd_reconstructed", "fd_generated")}
    metrics |= {f"accuracy_{n}": round(100 * sets[n].accuracy, 2) for n in ("test", "reconstructed", "generated")}
    return metrics, rows


def draw(p: Params, samples: arrays.ArrayFile, images: np.ndarray, decoded: np.ndarray) -> None:
    """The pictures. `images` and `decoded` are the test images before and after the autoencoder."""
    zoom = p.evaluate.zoom
    labels = samples.read("generated/labels")
    classes = np.unique(labels)
    places = [np.flatnonzero(labels == label)[:GRID] for label in classes]
    columns = min(len(place) for place in places)
    generated = samples.read("generated/images")
    grid = np.stack([generated[place[:columns]] for place in places])
    sheet(REPORTS / "samples.png", grid, zoom, rows=[str(label) for label in classes])

    trajectories = samples.read("trajectories/images").swapaxes(0, 1)  # (classes, times, C, H, W)
    times = [f"t = {t:g}" for t in samples.read("trajectories/times")]
    sheet(REPORTS / "trajectories.png", trajectories, zoom, columns=times)

    pairs = [a[i : i + GRID] for i in range(0, 4 * GRID, GRID) for a in (images, decoded)]
    sheet(REPORTS / "reconstructions.png", np.stack(pairs), zoom, rows=["original", "decoded"] * 4)

    steps = [f"step {step:,}" for step in samples.read("progress/steps")]
    sheet(REPORTS / "progress.png", samples.read("progress/images"), zoom, rows=steps)


def main(p: Params) -> None:
    classifier = load_model(CLASSIFIER, Classifier).to(device())
    with arrays.reading(IMAGES, IMAGES_FORMAT) as images, arrays.reading(SAMPLES, SAMPLES_FORMAT) as samples:
        real, labels = ({s: images.read(f"{s}/{a}") for s in ("validation", "test")} for a in ("images", "labels"))
        decoded = {split: samples.read(f"reconstructed/{split}") for split in real}
        pictures = {
            "validation": (real["validation"], labels["validation"]),
            "test": (real["test"], labels["test"]),
            "reconstructed": (decoded["validation"], labels["validation"]),
            "generated": (samples.read("generated/images"), samples.read("generated/labels")),
        }
        total = sum(len(y) for _, y in pictures.values())
        with Progress(total, "evaluate", "image", p.runtime.progress) as progress:
            sets = {n: measure(classifier, x, y, p.evaluate.batch_size, progress) for n, (x, y) in pictures.items()}
        draw(p, samples, real["test"], decoded["test"])
        nfe = int(samples.attribute("nfe"))

    metrics, rows = figures(sets)
    metrics["psnr"] = round(psnr(torch.from_numpy(real["test"]), torch.from_numpy(decoded["test"])), 2)
    metrics["validation_loss"] = round(read_json(FLOW / "record.json", "validation_loss")["validation_loss"], 5)
    metrics["nfe"] = nfe
    write_json(METRICS, metrics)
    write_csv(REPORTS / "frechet.csv", ("images", "frechet_distance", "times_floor"), rows)
    names = ("test", "reconstructed", "generated")
    per_class = [
        (int(c), *(100 * float(sets[n].correct[sets[n].labels == c].mean()) for n in names))
        for c in np.unique(labels["test"])
    ]
    write_csv(REPORTS / "accuracy.csv", ("label", *names), per_class)
    for name, value in metrics.items():
        say(f"{name:>32} {value}")


if __name__ == "__main__":
    run(main, "evaluate")

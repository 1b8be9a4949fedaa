"""The classifier that all metrics are measured with → models/classifier/."""

import shutil

import torch
import torch.nn.functional as F
from torch import Tensor

from lfm import random
from lfm.flow.schedule import warmup_cosine
from lfm.nets.classifier import Classifier, augment, to_pixels
from lfm.nets.weights import save_model
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.bundled import check_bundled
from pipeline.artifacts.files import CLASSIFIER, IMAGES, IMAGES_FORMAT, PRETRAINED, publishing, write_csv, write_json
from pipeline.machine import scratch
from pipeline.machine.runtime import device, precision
from pipeline.params import ClassifierParams, Params
from pipeline.progress import Progress, say
from pipeline.run import run
from pipeline.training import order
from pipeline.training.checkpoint import Checkpoints, State

BUNDLED = PRETRAINED / CLASSIFIER.name


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images (uint8) that are given their label."""
    with torch.no_grad():
        guesses = [model(to_pixels(part)).argmax(1) for part in images.split(500)]
    return float((torch.cat(guesses) == labels).float().mean())


def train(
    p: ClassifierParams, images: Tensor, labels: Tensor, classes: int, show: bool, saved: Checkpoints
) -> tuple[Classifier, list[tuple[int, float]]]:
    """Fit the classifier on augmented images with smoothed labels. Returns it and its loss curve."""
    where = images.device
    torch.manual_seed(random.torch_seed(p.seed, "classifier"))
    model = Classifier(images.shape[1], classes).to(where)
    optimizer = torch.optim.AdamW(model.parameters(), p.learning_rate, weight_decay=0.02)
    curve: list[tuple[int, float]] = []
    state = State({"model": model}, optimizer, {"curve": curve})
    start = saved.resume(state)
    with Progress(p.steps, "classifier", "step", show) as progress:
        progress.advance(start)
        for step in range(start, p.steps):
            for group in optimizer.param_groups:
                group["lr"] = p.learning_rate * warmup_cosine(step, p.steps, p.steps // 10)
            rows = order.batch_rows(p.seed, step, p.batch_size, len(labels)).to(where)
            u = random.uniform(p.seed, "augmentation", step, (p.batch_size, 5))
            pixels = augment(to_pixels(images[rows]), u.to(where))
            with precision(p.precision, where):
                loss = F.cross_entropy(model(pixels).float(), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0 or step == p.steps - 1:
                curve.append((step, saved.sound(step, loss.item(), curve)))
            saved.keep(state, step + 1, p.steps)
            progress.advance(loss=curve[-1][1])
    return model.eval(), curve


def main(p: Params) -> None:
    with arrays.reading(IMAGES, IMAGES_FORMAT) as file, publishing(CLASSIFIER) as folder:
        if p.classifier.source == "bundled":
            check_bundled("classifier", BUNDLED, file)
            shutil.copytree(BUNDLED, folder, dirs_exist_ok=True)
            return
        where = device()
        images, held_out = (torch.from_numpy(file.read(f"{s}/images")).to(where) for s in ("train", "validation"))
        labels, truth = (torch.from_numpy(file.read(f"{s}/labels")).long().to(where) for s in ("train", "validation"))
        classes = int(file.attribute("classes"))
        with scratch.opened() as kept:
            saved = Checkpoints(kept, p.runtime.checkpoint_every)
            model, curve = train(p.classifier, images, labels, classes, p.runtime.progress, saved)
        score = accuracy(model, held_out, truth)
        save_model(folder, model, model.config)
        write_csv(folder / "curves.csv", ("step", "loss"), curve)
        record = {"params": p.classifier.model_dump(), "train_sha256": file.attribute("train_sha256")}
        write_json(folder / "record.json", {**record, "accuracy_validation": round(score, 5)})
    say(f"{CLASSIFIER}: {score:.2%} of the validation images are classified correctly")


if __name__ == "__main__":
    run(main, "classifier")

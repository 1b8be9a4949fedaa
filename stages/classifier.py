"""The classifier in whose features all metrics are computed → models/classifier/."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lfm import random
from lfm.flow.schedule import warmup_cosine
from lfm.nets.augment import distorted
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.weights import save_model
from lfm.precision import precision, resolve
from pipeline.artifacts import bundled, hdf5, images
from pipeline.artifacts.files import write_csv, write_json
from pipeline.params import ClassifierParams
from pipeline.progress import say
from pipeline.run import Context, run
from pipeline.training.checkpoint import State
from pipeline.training.loop import Loop
from pipeline.training.order import batch_rows
from pipeline.training.together import shared

Curve = list[tuple[int, float]]


def accuracy(model: Classifier, pictures: Tensor, labels: Tensor) -> float:
    """Share of images (uint8) that are given their label."""
    with torch.no_grad():
        guesses = [model(to_pixels(part)).argmax(1) for part in pictures.split(500)]
    return float((torch.cat(guesses) == labels).float().mean())


def loss(model: Classifier, pixels: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with smoothed labels, a mean over the batch."""
    return F.cross_entropy(model(pixels).float(), labels, label_smoothing=0.05)


def section(context: Context) -> ClassifierParams:
    """The parameters of the stage, whose section has its name: classifier, or second_classifier."""
    values: ClassifierParams = getattr(context.params, context.entry.name)
    return values


def train(context: Context, pictures: Tensor, labels: Tensor, classes: int) -> tuple[Classifier, Curve]:
    """Fit the classifier on augmented images with smoothed labels. Returns it and its loss curve."""
    p, device = section(context), pictures.device
    torch.manual_seed(random.torch_seed(p.seed, "classifier"))
    model = Classifier(pictures.shape[1], classes, p.body, pictures.shape[2:]).to(device)
    loss_of = shared(partial(loss, model), model, context.ranks, context.entry.name, p.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), p.learning_rate, weight_decay=0.02)
    curve: Curve = []
    loop = Loop(
        context, context.entry.name, State({"model": model}, optimizer, {"curve": curve}), p.steps,
        lambda step: p.learning_rate * warmup_cosine(step, p.steps, p.steps // 10),
    )  # fmt: skip
    for step in loop:
        rows = random.moved(batch_rows(p.seed, step, p.batch_size, len(labels)), device)
        u = random.moved(random.uniform(p.seed, "augmentation", step, (p.batch_size, 5)), device)
        pixels = distorted(to_pixels(pictures[rows]), u)
        with precision(p.precision, device):
            value = loss_of(pixels, labels[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 50 == 0 or step == p.steps - 1:
            curve.append((step, loop.checked(value, step, curve)))
    return model.eval(), curve


def main(context: Context) -> None:
    p, name = section(context), context.entry.name
    with hdf5.reading(context.input("images"), images.FORMAT) as file:
        if p.source == "bundled":
            bundled.copy(context, name, file)
            return
        pictures, held_out = (
            torch.from_numpy(file.read(f"{s}/images")).to(context.device) for s in ("train", "validation")
        )
        labels, truth = (
            torch.from_numpy(file.read(f"{s}/labels")).long().to(context.device) for s in ("train", "validation")
        )
        model, curve = train(context, pictures, labels, int(file.attribute("classes")))
        score = accuracy(model, held_out, truth)
        record = {
            "params": p.model_dump(),
            "precision": resolve(p.precision, context.device),
            "train_sha256": file.attribute("train_sha256"),
        }
    with context.publish(name) as folder:
        save_model(folder, model, model.config)
        write_csv(folder / "curves.csv", ("step", "loss"), curve)
        write_json(folder / "record.json", {**record, "accuracy_validation": round(score, 5)})
    say(f"{context.output(name)}: {score:.2%} of the validation images are classified correctly")


if __name__ == "__main__":
    run(main)

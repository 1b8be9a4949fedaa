"""Figures of what was generated → reports/metrics.json and tables."""

from functools import partial

import numpy as np
import torch
from sklearn.decomposition import PCA

from lfm.evaluation.neighbours import memorised, nearest
from lfm.evaluation.protocol import PARTS, Findings, View, enough, flat, judge, view
from lfm.evaluation.psnr import psnr
from lfm.evaluation.verdict import verdict
from lfm.nets.classifier import Classifier
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import (
    CLASSIFIER,
    FLOW,
    IMAGES,
    IMAGES_FORMAT,
    LIKELIHOOD,
    METRICS,
    REPORTS,
    SAMPLES,
    SAMPLES_FORMAT,
    read_json,
    write_csv,
    write_json,
)  # fmt: skip
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.errors import UserError
from pipeline.machine import scratch
from pipeline.machine.runtime import device
from pipeline.params import Params
from pipeline.progress import Progress, say
from pipeline.run import run

SHOWN = ("test", "reconstructed", "generated")
PERCENTILES = range(101)


def figures(found: Findings, sets: dict[str, View], copied: dict[str, float]) -> dict[str, float]:
    """The few figures that two experiments are compared by, scaled to be read with five digits."""
    rows = found.table
    generated, floor = rows["generated"], rows["validation"]
    flat_metrics = {f"fd_{name}": round(row.fd, 5) for name, row in rows.items()}
    flat_metrics["fd_generated_sd"] = round(generated.fd_sd, 5)
    flat_metrics["fd_generated_unbiased"] = round(generated.fd_unbiased, 5)
    flat_metrics |= {f"fd_{n}_vs_floor": round(rows[n].fd / floor.fd, 3) for n in ("reconstructed", "generated")}
    flat_metrics |= {f"fd_pixels_{n}": round(rows[n].fd_pixels, 4) for n in ("validation", "generated")}
    flat_metrics |= {f"kid_{n}_x1000": round(1000 * rows[n].kid, 3) for n in ("validation", "generated")}
    flat_metrics |= {name: round(100 * value, 2) for name, value in generated.manifolds._asdict().items()}
    flat_metrics |= {
        f"two_sample_{n}": round(rows[n].two_sample, 2) for n in ("validation", "reconstructed", "generated")
    }
    flat_metrics |= {f"accuracy_{n}": round(sets[n].accuracy, 2) for n in SHOWN}
    flat_metrics["class_imbalance"] = round(found.imbalance, 2)
    flat_metrics["memorised"] = round(copied["generated"], 2)
    flat_metrics["indistinguishable_conditions_met"] = sum(c.holds for c in found.conditions)
    return flat_metrics


def tables(found: Findings, sets: dict[str, View], near: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """The details, for plots and for the page."""
    rows = [(n, *(v for v in r if not isinstance(v, tuple)), *r.manifolds) for n, r in found.table.items()]
    first = found.table["generated"]
    columns = [name for name, value in first._asdict().items() if not isinstance(value, tuple)]
    write_csv(REPORTS / "comparisons.csv", ("images", *columns, *first.manifolds._fields), rows)

    total = len(sets["generated"].labels)
    sizes = [(total // parts, *(found.by_size[n][i] for n in found.by_size)) for i, parts in enumerate(PARTS)]
    write_csv(REPORTS / "frechet_by_size.csv", ("images", *found.by_size), sizes)

    judged = [
        (kind, *c, int(c.holds))
        for kind, group in (("condition", found.conditions), ("alarm", found.alarms))
        for c in group
    ]
    write_csv(REPORTS / "conditions.csv", ("kind", "name", "what", "figure", "limit", "holds"), judged)

    classes = np.unique(sets["test"].labels)
    by_class = [
        (int(c), *(100 * float((s.recognised == c)[s.labels == c].sum() / max(1, (s.labels == c).sum()))
                   for s in (sets[n] for n in SHOWN)),
         *(100 * float((sets[n].recognised == c).mean()) for n in SHOWN))
        for c in classes
    ]  # fmt: skip
    write_csv(REPORTS / "accuracy.csv", ("label", *SHOWN, *(f"share_{n}" for n in SHOWN)), by_class)

    for name in ("generated", "test"):
        s, (place, distance) = sets[name], near[name]
        each = zip(
            range(len(place)), s.labels, s.recognised, s.log_odds.tolist(), place, distance.tolist(), strict=True
        )
        header = ("image", "label", "recognised", "log_odds", "nearest_training", "distance")
        write_csv(REPORTS / f"{name}.csv", header, each)
    quantiles = np.stack([np.percentile(near[n][1], PERCENTILES) for n in near], 1)
    write_csv(REPORTS / "nearest.csv", ("percent", *near), [(i, *q.tolist()) for i, q in enumerate(quantiles)])


def same_data(images: ArrayFile, samples: ArrayFile) -> None:
    """Raises `UserError` where images, samples and classifier are not of one data set."""
    expected, found = images.attribute("dataset"), samples.attribute("dataset")
    if found != expected:
        raise UserError(f"{SAMPLES}: of data set '{found}', but {IMAGES} is of '{expected}'; run `dvc repro`")
    fitted = read_json(CLASSIFIER / "record.json", train_sha256=str)["train_sha256"]
    if fitted != images.attribute("train_sha256"):
        raise UserError(
            f"{CLASSIFIER}: fitted on other images ({fitted[:12]}…) than those of {IMAGES}; run `dvc repro`"
        )


def near_training(seen: View, training: np.ndarray) -> dict[str, np.ndarray]:
    """The nearest training image of each image of a set, and how far it is."""
    place, distance = nearest(seen.pixels, training)
    return {"place": place, "distance": distance}


def main(p: Params) -> None:
    classifier = load_model(CLASSIFIER, Classifier).to(device())
    e = p.evaluate
    with arrays.reading(IMAGES, IMAGES_FORMAT) as images, arrays.reading(SAMPLES, SAMPLES_FORMAT) as samples:
        same_data(images, samples)
        real, labels = ({s: images.read(f"{s}/{a}") for s in ("validation", "test")} for a in ("images", "labels"))
        decoded = {split: samples.read(f"reconstructed/{split}") for split in real}
        pictures = {
            "validation": (real["validation"], labels["validation"]),
            "test": (real["test"], labels["test"]),
            "reconstructed": (decoded["validation"], labels["validation"]),
            "generated": (samples.read("generated/images"), samples.read("generated/labels")),
        }
        training = flat(images.read("train/images"))
        nfe, labelled = float(samples.attribute("nfe")), bool(samples.attribute("labelled"))
    enough(e, min(len(y) for _, y in pictures.values()), training)
    components = PCA(e.pixel_components, svd_solver="covariance_eigh").fit(training)
    training = components.transform(training)
    with Progress(sum(len(y) for _, y in pictures.values()), "evaluate", "image", p.runtime.progress) as progress:
        sets = {n: view(classifier, components, *xy, e.batch_size, progress) for n, xy in pictures.items()}
    if not labelled:  # nothing was asked for, so nothing can be missed
        sets["generated"] = sets["generated"]._replace(labels=sets["generated"].recognised)
    near = {}
    with scratch.opened() as saved:
        with Progress(len(sets), "nearest training images", "set", p.runtime.progress) as progress:
            for name, s in sets.items():
                part = saved.part(f"nearest-{name}", partial(near_training, s, training))
                near[name] = part["place"], part["distance"]
                progress.advance()
        copied = {n: 100 * memorised(d, near["test"][1], e.nearest_quantile) for n, (_, d) in near.items()}
        found = judge(sets, copied, e, p.runtime.progress, saved)

    result = figures(found, sets, copied)
    if not labelled:
        del result["accuracy_generated"]
        found = found._replace(conditions=[c for c in found.conditions if c.name != "accuracy"])
    result["psnr"] = round(psnr(torch.from_numpy(real["test"]), torch.from_numpy(decoded["test"])), 2)
    result["validation_loss"] = round(read_json(FLOW / "record.json", validation_loss=float)["validation_loss"], 5)
    result["bits_per_dim"] = round(read_json(LIKELIHOOD, bits_per_dim=float)["bits_per_dim"], 4)
    result["nfe"] = round(nfe, 1)
    write_json(METRICS, result)
    tables(found, sets, near)
    for name, value in result.items():
        say(f"{name:>32} {value}")
    say(verdict(found.conditions, found.alarms))


if __name__ == "__main__":
    run(main, "evaluate")

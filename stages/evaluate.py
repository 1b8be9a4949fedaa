"""Figures of what was generated → reports/metrics.json and tables."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA

from lfm.evaluation.neighbours import memorised, nearest
from lfm.evaluation.protocol import PARTS, Findings, Settings, View, check_sizes, flat, judge, look, rule, view
from lfm.evaluation.verdict import verdict
from lfm.nets.classifier import Classifier
from lfm.nets.weights import load_model
from lfm.psnr import psnr
from pipeline.artifacts import hdf5, images, samples
from pipeline.artifacts.files import read_json, write_csv, write_json
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.errors import UserError
from pipeline.progress import say
from pipeline.run import Context, run

COMPARED = ("test", "reconstructed", "generated")
BY_FLOW = ("validation", "test", "generated")  # beside what the flow map draws
PERCENTILES = range(101)


def figures(findings: Findings, sets: dict[str, View], copied: dict[str, float]) -> dict[str, float]:
    """The few figures that two experiments are compared by, scaled to be read with five digits."""
    rows = findings.table
    generated, floor = rows["generated"], rows["validation"]
    flat_metrics = {f"fd_{name}": round(row.fd, 5) for name, row in rows.items()}
    flat_metrics["fd_generated_error"] = round(generated.fd_error, 5)
    flat_metrics["fd_generated_unbiased"] = round(generated.fd_unbiased, 5)
    flat_metrics |= {f"fd_{n}_vs_floor": round(rows[n].fd / floor.fd, 3) for n in ("reconstructed", "generated")}
    flat_metrics |= {f"fd_pixels_{n}": round(rows[n].fd_pixels, 4) for n in ("validation", "generated")}
    flat_metrics |= {f"kid_{n}_x1000": round(1000 * rows[n].kid, 3) for n in ("validation", "generated")}
    flat_metrics |= {name: round(100 * value, 2) for name, value in generated.manifolds._asdict().items()}
    flat_metrics |= {
        f"two_sample_{n}": round(rows[n].two_sample, 2) for n in ("validation", "reconstructed", "generated")
    }
    flat_metrics |= {f"accuracy_{n}": round(sets[n].accuracy, 2) for n in COMPARED}
    flat_metrics["class_imbalance"] = round(findings.imbalance, 2)
    flat_metrics["memorised"] = round(copied["generated"], 2)
    flat_metrics["indistinguishable_conditions_met"] = sum(c.holds for c in findings.conditions)
    return flat_metrics


Table = tuple[Sequence[str], Iterable[Sequence[object]]]  # header and rows


def tables(
    findings: Findings, sets: dict[str, View], near: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Table]:
    """The details, for plots and for the page: name → header and rows."""
    made: dict[str, Table] = {}
    rows = [(n, *(v for v in r if not isinstance(v, tuple)), *r.manifolds) for n, r in findings.table.items()]
    first = findings.table["generated"]
    columns = [name for name, value in first._asdict().items() if not isinstance(value, tuple)]
    made["comparisons"] = ("images", *columns, *first.manifolds._fields), rows

    total = len(sets["generated"].labels)
    sizes = [(total // parts, *(findings.by_size[n][i] for n in findings.by_size)) for i, parts in enumerate(PARTS)]
    made["frechet_by_size"] = ("images", *findings.by_size), sizes

    judged = [
        (kind, *c, int(c.holds))
        for kind, group in (("condition", findings.conditions), ("alarm", findings.alarms))
        for c in group
    ]
    made["conditions"] = ("kind", "name", "what", "figure", "limit", "holds"), judged

    classes = np.unique(sets["test"].labels)
    by_class = [
        (int(c), *(100 * float((s.recognised == c)[s.labels == c].sum() / max(1, (s.labels == c).sum()))
                   for s in (sets[n] for n in COMPARED)),
         *(100 * float((sets[n].recognised == c).mean()) for n in COMPARED))
        for c in classes
    ]  # fmt: skip
    made["accuracy"] = ("label", *COMPARED, *(f"share_{n}" for n in COMPARED)), by_class

    for name in ("generated", "test"):
        s, (place, distance) = sets[name], near[name]
        each = zip(
            range(len(place)), s.labels, s.recognised, s.log_odds.tolist(), place, distance.tolist(), strict=True
        )
        header = ("image", "label", "recognised", "log_odds", "nearest_training", "distance")
        made[name] = header, each
    quantiles = np.stack([np.percentile(near[n][1], PERCENTILES) for n in near], 1)
    made["nearest"] = ("percent", *near), [(i, *q.tolist()) for i, q in enumerate(quantiles)]
    return made


def by_flow(
    sets: dict[str, dict[str, View]], passes: dict[str, float], labelled: bool, settings: Settings
) -> dict[str, dict[str, float]]:
    """The flow and the flow map side by side, and validation images as the reference, in the features of both classifiers.

    Args:
        sets: prefix of a classifier's columns → what it sees.
        passes: function evaluations an image of each set.
    """
    rows = {name: {"evaluations": n} for name, n in passes.items()}
    for prefix, seen in sets.items():
        ruled = rule({name: images._replace(matched=labelled) for name, images in seen.items()}, settings)
        for name, row in rows.items():
            found = ruled[name]
            row |= {f"{prefix}fd": found.fd, f"{prefix}fd_error": found.fd_error}
            row[f"{prefix}fd_vs_floor"] = found.fd / ruled["validation"].fd
            row[f"{prefix}accuracy"] = found.accuracy if labelled or name == "validation" else float("nan")
    return rows


def check_same_data(classifier: Path, pictures: ArrayFile, drawn: ArrayFile) -> None:
    """Raises `UserError` where images, samples and classifier are not of one data set."""
    samples.check_images(drawn, pictures)
    fitted = read_json(classifier / "record.json", train_sha256=str)["train_sha256"]
    if not images.fitted_on(pictures, fitted):
        raise UserError(f"{classifier}: fitted on other images ({fitted[:12]}…) than these; run `dvc repro`")


def near_training(images: View, training: np.ndarray) -> dict[str, np.ndarray]:
    """The nearest training image of each image of a set, and how far it is."""
    place, distance = nearest(images.pixels, training)
    return {"place": place, "distance": distance}


def near_all(context: Context, sets: dict[str, View], training: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`near_training` of every set."""
    near = {}
    with context.progress(len(sets), "nearest training images", "set") as progress:
        for name, s in sets.items():
            part = context.part(f"nearest-{name}", partial(near_training, s, training))
            near[name] = part["place"], part["distance"]
            progress.advance()
    return near


def main(context: Context) -> None:
    e = context.params.evaluate
    validation_loss = read_json(context.input("flow") / "record.json", validation_loss=float)["validation_loss"]
    bits = read_json(context.input("likelihood"), bits_per_dim=float)["bits_per_dim"]
    classifier, second = (
        load_model(context.input(name), Classifier).to(context.device) for name in ("classifier", "second_classifier")
    )
    with (
        hdf5.reading(context.input("images"), images.FORMAT) as file,
        hdf5.reading(context.input("samples"), samples.FORMAT) as drawn,
    ):
        for name in ("classifier", "second_classifier"):
            check_same_data(context.input(name), file, drawn)
        real, labels = ({s: file.read(f"{s}/{a}") for s in ("validation", "test")} for a in ("images", "labels"))
        decoded = {split: drawn.read(f"reconstructed/{split}") for split in real}
        pictures = {
            "validation": (real["validation"], labels["validation"]),
            "test": (real["test"], labels["test"]),
            "reconstructed": (decoded["validation"], labels["validation"]),
            "generated": (drawn.read("generated/images"), drawn.read("generated/labels")),
        }
        few = {f"few_{n}": (i, int(n)) for i, n in enumerate(drawn.read("few/evaluations"))}
        images_of_few = drawn.read("few/images")
        training = flat(file.read("train/images"))
        nfe, labelled = float(drawn.attribute("nfe")), bool(drawn.attribute("labelled"))
    settings = Settings(**{name: value for name, value in e.model_dump().items() if name in Settings._fields})
    check_sizes(settings, min(len(y) for _, y in pictures.values()), training)
    components = PCA(e.pixel_components, svd_solver="covariance_eigh").fit(training)
    training = components.transform(training)
    flow_maps = {name: (images_of_few[:, i], pictures["generated"][1]) for name, (i, _) in few.items()}
    compared = {name: pictures[name] for name in BY_FLOW} | flow_maps
    total = sum(len(y) for of in (pictures, flow_maps, compared) for _, y in of.values())
    with context.progress(total, "evaluate", "image") as progress:
        sets = {n: view(classifier, components, *xy, e.batch_size, progress.advance) for n, xy in pictures.items()}
        maps = {n: look(classifier, *xy, e.batch_size, progress.advance) for n, xy in flow_maps.items()}
        seconds = {n: look(second, *xy, e.batch_size, progress.advance) for n, xy in compared.items()}
    passes = {"validation": 0.0, "generated": nfe, **{name: float(n) for name, (_, n) in few.items()}}
    seen = {"": {n: sets[n] for n in BY_FLOW} | maps, "second_": seconds}
    flows = by_flow(seen, passes, labelled, settings)
    if not labelled:  # nothing was asked for, so nothing can be missed
        generated = sets["generated"]
        sets["generated"] = generated._replace(labels=generated.recognised, matched=False)
    near = near_all(context, sets, training)
    copied = {n: 100 * memorised(d, near["test"][1], e.nearest_quantile) for n, (_, d) in near.items()}
    findings = judge(sets, copied, settings, context)

    result = figures(findings, sets, copied)
    if not labelled:
        del result["accuracy_generated"]
        findings = findings._replace(conditions=[c for c in findings.conditions if c.name != "accuracy"])
    result["psnr"] = round(psnr(torch.from_numpy(real["test"]), torch.from_numpy(decoded["test"])), 2)
    result["validation_loss"], result["bits_per_dim"] = round(validation_loss, 5), round(bits, 4)
    result["nfe"] = round(nfe, 1)
    result |= {f"fd_second_{n}": round(flows[n]["second_fd"], 5) for n in ("validation", "generated")}
    result["fd_second_generated_vs_floor"] = round(flows["generated"]["second_fd_vs_floor"], 3)
    for name in few:
        result[f"fd_{name}_vs_floor"] = round(flows[name]["fd_vs_floor"], 3)
        result |= {f"accuracy_{name}": round(flows[name]["accuracy"], 2)} if labelled else {}
    header = ["images", *flows["generated"]]
    side_by_side: Table = header, [(name, *row.values()) for name, row in flows.items()]
    with context.publish("metrics") as part:
        write_json(part, result)
        with context.publish("tables") as folder:
            for name, table in (tables(findings, sets, near) | {"evaluations": side_by_side}).items():
                write_csv(folder / f"{name}.csv", *table)
    for name, value in result.items():
        say(f"{name:>32} {value}")
    say(verdict(findings.conditions, findings.alarms))


if __name__ == "__main__":
    run(main)

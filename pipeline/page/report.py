"""The report: what `evaluate` measured, the pictures and where they came from → one HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from lfm.evaluation.verdict import SDS, Condition, verdict
from pipeline.artifacts.files import read_json
from pipeline.errors import UserError
from pipeline.page.charts import chart
from pipeline.page.gallery import WIDE, Sources
from pipeline.page.html import page
from pipeline.page.pictures import Picture
from pipeline.page.provenance import parameters, provenance, weights_sha256
from pipeline.page.tables import read_table
from pipeline.params import Params

METRICS = (
    "fd_generated",
    "fd_generated_error",
    "fd_generated_vs_floor",
    "accuracy_test",
    "psnr",
    "nfe",
    "bits_per_dim",
)
THINGS = {"mnist": "digits", "mnist_sample": "digits"}
COMPARED = {
    "validation": "validation (reference)",
    "reconstructed": "reconstructed",
    "generated": "generated",
    "generated_reconstructed": "generated, against reconstructed",
}
COMPARISON_COLUMNS = ("fd", "fd_error", "fd_unbiased", "fd_pixels", "fd_pixels_error", "kid", "kid_error", "precision", "recall",
                      "density", "coverage", "two_sample", "two_sample_pixels")  # fmt: skip

Rows = list[tuple[str, ...]]  # of a table: text, formatted


def render(
    p: Params,
    sources: Sources,
    pictures: Sequence[Picture],
    *,
    metrics: Path,
    tables: Path,
    flow: Path,
    classifier: Path,
) -> str:
    """The page as HTML.

    Args:
        metrics: metrics.json.
        tables: folder of the tables that `evaluate` wrote.
        flow, classifier: folders of the trained models.

    Raises `UserError` where a file is missing or damaged.
    """
    figures = read_json(metrics, **dict.fromkeys(METRICS, float))
    conditions, alarms = (read_conditions(tables / "conditions.csv", kind) for kind in ("condition", "alarm"))
    line = verdict(conditions, alarms)
    dataset = str(sources.images.attribute("dataset"))
    return page(
        "report",
        zoom=p.report.zoom,
        dataset=dataset,
        total=f"{len(sources.generated['label']):,}",
        things=THINGS.get(dataset, "images"),
        banner=next(picture.images[:WIDE, 0] for picture in pictures if picture.name == "samples"),
        verdict=line[0].upper() + line[1:],
        figures=overview(figures),
        conditions=condition_rows(conditions),
        alarms=condition_rows(alarms),
        comparisons=comparison_rows(tables / "comparisons.csv"),
        evaluations=evaluation_rows(tables / "evaluations.csv"),
        classifier_sha256=weights_sha256(classifier),
        accuracy_test=f"{figures['accuracy_test']:.2f}",
        components=p.evaluate.pixel_components,
        pictures=pictures,
        **curves(tables, flow),
        **classes(tables / "accuracy.csv", sources),
        params=parameters(p),
        provenance=provenance(sources.images, flow, classifier),
    )


def overview(metrics: dict[str, Any]) -> Rows:
    """(name, value) of a few figures."""
    accuracy = f"{metrics['accuracy_generated']:.2f} %" if "accuracy_generated" in metrics else "no labels"
    return [
        (f"Fréchet distance, ±\u00a0{SDS * metrics['fd_generated_error']:.4f}", f"{metrics['fd_generated']:.4f}"),
        ("times the reference (validation against test images)", f"{metrics['fd_generated_vs_floor']:.2f}"),
        (f"labels recognised by the classifier (test images: {metrics['accuracy_test']:.2f} %)", accuracy),
        ("reconstruction PSNR", f"{metrics['psnr']:.2f} dB"),
        ("function evaluations per image (NFE)", f"{metrics['nfe']:g}"),
        ("bits per latent dimension", f"{metrics['bits_per_dim']:.3f}".replace("-", "−")),
    ]


def read_conditions(path: Path, kind: str) -> list[Condition]:
    """The conditions of this kind: those of being indistinguishable ("condition"), or "alarm"."""
    t = read_table(path, "figure", "limit", texts=("kind", "name", "what"))
    rows = zip(t["kind"].tolist(), *(t[column].tolist() for column in Condition._fields), strict=True)
    return [Condition(*values) for row_kind, *values in rows if row_kind == kind]


def condition_rows(conditions: Sequence[Condition]) -> Rows:
    return [(f"{c.name}\n{c.what}", f"{'✓' if c.holds else '✗'} {c.figure:.3g}", f"{c.limit:.3g}") for c in conditions]


def comparison_rows(path: Path) -> Rows:
    """A row for each set of images. Raises `UserError` for a set that is unknown."""
    t = read_table(path, *COMPARISON_COLUMNS, texts=("images",))
    names = t["images"].tolist()
    if unknown := set(names) - set(COMPARED):
        raise UserError(f"{path}: has a row '{min(unknown)}'; delete it and run `dvc repro`")
    rows = [{key: t[key][i] for key in COMPARISON_COLUMNS} for i in range(len(names))]
    return [
        (COMPARED[name], f"{r['fd']:.4f}\n± {SDS * r['fd_error']:.4f}", f"{r['fd'] / rows[0]['fd']:.2f}",
         f"{r['fd_unbiased']:.4f}", f"{r['fd_pixels']:.3f}\n± {SDS * r['fd_pixels_error']:.3f}",
         f"{1000 * r['kid']:.2f}\n± {1000 * SDS * r['kid_error']:.2f}",
         *(f"{100 * r[key]:.1f}" for key in ("precision", "recall", "density", "coverage")),
         f"{r['two_sample']:.1f} %", f"{r['two_sample_pixels']:.1f} %")
        for name, r in zip(names, rows, strict=True)
    ]  # fmt: skip


def evaluation_rows(path: Path) -> Rows:
    """The flow and the flow map: a row for each number of evaluations."""
    columns = [f"{ruler}{c}" for ruler in ("", "second_") for c in ("fd", "fd_error", "fd_vs_floor", "accuracy")]
    t = read_table(path, "evaluations", *columns, texts=("images",))
    rows = []
    for i, name in enumerate(t["images"].tolist()):
        n = t["evaluations"][i]
        cells = [
            {"validation": "validation (reference)", "generated": "flow"}.get(name, "flow map"),
            f"{n:g}" if n else "",
        ]
        for ruler in ("", "second_"):
            fd, error, floors, accuracy = (t[f"{ruler}{c}"][i] for c in ("fd", "fd_error", "fd_vs_floor", "accuracy"))
            cells += [f"{fd:.4f}\n± {SDS * error:.4f}", f"{floors:.2f}"]
            cells.append(f"{accuracy:.2f} %" if np.isfinite(accuracy) else "no labels")
        rows.append(tuple(cells))
    return rows


def curves(tables: Path, flow: Path) -> dict[str, str]:
    """Charts: the losses, the Fréchet distance against 1/N, and how near training images lie."""
    sets = ("validation", "reconstructed", "generated")
    training = read_table(flow / "curves.csv", "step", "train_loss")
    validation = read_table(flow / "validation.csv", "step", "validation_loss")
    sizes = read_table(tables / "frechet_by_size.csv", "images", *sets)
    near = read_table(tables / "nearest.csv", "percent", "test", *sets[1:])
    losses = {
        "training": (training["step"], training["train_loss"]),
        "validation": (validation["step"], validation["validation_loss"]),
    }
    by_size = {name: (1000 / sizes["images"], sizes[name]) for name in sets}
    percentiles = {name: (near[name], near["percent"]) for name in ("test", *sets[1:])}
    return {
        "loss": chart(losses, "step", "mean squared error of the velocity"),
        "frechet_by_size": chart(by_size, "1000 / N", "Fréchet distance", marks=True),
        "nearest": chart(percentiles, "distance in pixel space", "percent"),
    }


def classes(path: Path, sources: Sources) -> dict[str, Any]:
    """Accuracy by class, and the confusion matrix of generated images."""
    columns = ("test", "reconstructed", "generated", "share_test", "share_generated")
    t = read_table(path, "label", *columns)
    labels = t["label"].astype(int).tolist()
    counts = confusion_matrix(*(sources.generated[c].astype(int) for c in ("label", "recognised")), labels=labels)
    off_diagonal = counts * (1 - np.eye(len(labels)))
    opacities = 0.6 * off_diagonal / max(1, off_diagonal.max())
    return {
        "accuracy": [
            (sources.classes.get(label, str(label)), *(f"{t[column][i]:.2f}" for column in columns))
            for i, label in enumerate(labels)
        ],
        "labels": labels,
        "confusion": [
            [(count, f"{opacity:.2f}") for count, opacity in zip(*row, strict=True)]
            for row in zip(counts.tolist(), opacities.tolist(), strict=True)
        ],
    }

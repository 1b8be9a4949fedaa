"""Pictures, and one page that shows everything → reports/*.png and reports/report.html."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from lfm.evaluation.neighbours import Manifolds
from lfm.evaluation.verdict import SDS, Comparison, Condition, verdict
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import (
    CLASSIFIER,
    FLOW,
    IMAGES,
    IMAGES_FORMAT,
    METRICS,
    REPORTS,
    SAMPLES,
    SAMPLES_FORMAT,
    read_csv,
    read_json,
    replacing,
)  # fmt: skip
from pipeline.errors import UserError
from pipeline.page.charts import Line, chart
from pipeline.page.gallery import GALLERY, WIDE, Sources, named
from pipeline.page.html import cards, contents, figure, heading, heat_table, inline, page, table, tiles, titled
from pipeline.page.pictures import Picture, sheet
from pipeline.page.provenance import provenance, sha256
from pipeline.params import Params
from pipeline.run import run

SHOWN = ("fd_generated", "fd_generated_sd", "fd_generated_vs_floor", "accuracy_test", "psnr", "nfe", "bits_per_dim")
THINGS = {"mnist": "digits", "digits": "digits"}
EACH = ("label", "recognised", "log_odds", "nearest_training", "distance")  # of every image
NAMES = {
    "validation": "validation (the floor)",
    "reconstructed": "reconstructed",
    "generated": "generated",
    "generated_reconstructed": "generated, against reconstructed",
}


def columns(path: Path, *names: str, words: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """A table that holds these columns: numbers, but for those of `words`."""
    try:
        read = read_csv(path, *names, *words).items()
        return {name: np.array(values) if name in words else np.array(values, float) for name, values in read}
    except ValueError as error:
        raise UserError(f"{path}: not all numbers ({error}); delete it and run `dvc repro`") from error


def judged() -> tuple[list[Condition], list[Condition]]:
    """The conditions and the alarms that `evaluate` wrote."""
    rows = columns(REPORTS / "conditions.csv", "figure", "limit", words=("kind", "name", "what"))
    every = zip(*(rows[n].tolist() for n in ("kind", "name", "what", "figure", "limit")), strict=True)
    found = [(kind, Condition(name, what, figure, limit)) for kind, name, what, figure, limit in every]
    return [c for kind, c in found if kind == "condition"], [c for kind, c in found if kind == "alarm"]


def overview(
    metrics: dict[str, Any], line: str, dataset: str, total: int, shown_first: np.ndarray, zoom: int
) -> Iterator[str]:
    """What one sees first: some images, the verdict, a few figures."""
    things = THINGS.get(dataset, "images")
    yield f'<p class="soft">lfm · latent flow matching · {escape(dataset)}</p><h1>{total:,} {things} out of noise</h1>'
    yield inline(shown_first, zoom, "One generated image of each class", "banner")
    yield f'<p class="verdict">{line[0].upper() + line[1:]}.</p>'
    accuracy = f"{metrics['accuracy_generated']:.2f} %" if "accuracy_generated" in metrics else "no labels"
    shown = [
        (f"Fréchet distance, ±\u00a0{SDS * metrics['fd_generated_sd']:.4f} (2 sd)", f"{metrics['fd_generated']:.4f}"),
        ("times the floor, which real images give", f"{metrics['fd_generated_vs_floor']:.2f}"),
        (f"labels recognised; of test images {metrics['accuracy_test']:.2f} %", accuracy),
        ("reconstruction PSNR", f"{metrics['psnr']:.2f} dB"),
        ("function evaluations an image", f"{metrics['nfe']:g}"),
        ("bits per latent dimension", f"{metrics['bits_per_dim']:.3f}".replace("-", "−")),
    ]
    yield tiles(shown)


def conditions(met: Sequence[Condition], others: Sequence[Condition]) -> str:
    def rows(group: Sequence[Condition]) -> list[tuple[str, ...]]:
        return [(f"{c.name}\n{c.what}", f"{'✓' if c.holds else '✗'} {c.figure:.3g}", f"{c.limit:.3g}") for c in group]

    header = ("", "found", "at most")
    return cards(
        titled("Indistinguishable means all of", table(header, rows(met))),
        titled("Alarms, for what the classifier is blind to", table(header, rows(others))),
    )


def comparisons(metrics: dict[str, Any], components: int) -> str:
    """The four rows, and what they are measured with."""
    path, kinds = REPORTS / "comparisons.csv", [n for n in Comparison._fields if n != "manifolds"]
    t = columns(path, *kinds, *Manifolds._fields, words=("images",))
    names = t.pop("images").tolist()
    if unknown := set(names) - set(NAMES):
        raise UserError(f"{path}: has a row '{min(unknown)}'; delete it and run `dvc repro`")
    rows = [{key: values[i] for key, values in t.items()} for i in range(len(names))]
    floor = rows[0]["fd"]
    lines = [
        (NAMES[name], f"{r['fd']:.4f}\n± {SDS * r['fd_sd']:.4f}", f"{r['fd'] / floor:.2f}", f"{r['fd_unbiased']:.4f}",
         f"{r['fd_pixels']:.3f}\n± {SDS * r['fd_pixels_sd']:.3f}", f"{1000 * r['kid']:.2f}\n± {1000 * SDS * r['kid_error']:.2f}",
         *(f"{100 * r[key]:.1f}" for key in ("precision", "recall", "density", "coverage")),
         f"{r['two_sample']:.1f} %", f"{r['two_sample_pixels']:.1f} %")
        for name, r in zip(names, rows, strict=True)
    ]  # fmt: skip
    header = ("against the test images", "Fréchet distance", "× floor", "at 1/N → 0", "of pixels", "KID × 1000",
              "precision", "recall", "density", "coverage", "two-sample", "of pixels")  # fmt: skip
    note = (
        f"Measured in the features of one classifier (sha256 {sha256(CLASSIFIER / 'model.safetensors')[:12]}…, "
        f"{metrics['accuracy_test']:.2f} % right on the test images): compare no figures of different classifiers. "
        f"Of pixels: in {components} principal components. ± is two standard deviations. Precision, recall, density and "
        "coverage in percent. Two-sample: how often a logistic regression tells the two sets apart, 50 % is chance. "
        "Nothing can be expected to beat the floor."
    )
    return table(header, lines, "wide") + f'<p class="note">{escape(note)}</p>'


def loss(path: Path, column: str) -> Line:
    """One curve."""
    t = columns(path, "step", column)
    return t["step"], t[column]


def curves() -> str:
    """Losses, the distance against 1/N, and how near training images lie."""
    sets = ("validation", "reconstructed", "generated")
    sizes = columns(REPORTS / "frechet_by_size.csv", "images", *sets)
    near = columns(REPORTS / "nearest.csv", "percent", "test", *sets[1:])
    losses = {
        "training": loss(FLOW / "curves.csv", "train_loss"),
        "validation": loss(FLOW / "validation.csv", "validation_loss"),
    }
    inverse = 1000 / sizes["images"]
    return cards(
        titled("Flow matching loss", chart(losses, "step", "mean squared error of the velocity")),
        titled(
            "Fréchet distance against 1/N",
            chart({n: (inverse, sizes[n]) for n in sets}, "1000 / N", "Fréchet distance", marks=True),
            "A distance between samples is too large by a part that shrinks as 1/N; what is left at 0 is real.",
        ),
        titled(
            "Distance to the nearest training image",
            chart({n: (near[n], near["percent"]) for n in ("test", *sets[1:])}, "distance in pixel space", "percent"),
            "Percent of images nearer than that. Memorising would lift a curve far above that of the test images.",
        ),
        kind="three",
    )


def classes(generated: dict[str, np.ndarray], names: dict[int, str]) -> str:
    shown = ("test", "reconstructed", "generated", "share_test", "share_generated")
    t = columns(REPORTS / "accuracy.csv", "label", *shown)
    labels = t["label"].astype(int).tolist()
    lines = [[names.get(label, str(label)), *(f"{t[name][i]:.2f}" for name in shown)] for i, label in enumerate(labels)]
    header = ["", "test", "decoded", "generated", "share of test", "of generated"]
    counts = confusion_matrix(generated["label"].astype(int), generated["recognised"].astype(int), labels=labels)
    return cards(
        titled("Recognised in percent, and share of all images recognised as it", table(header, lines)),
        titled(
            "Generated images: asked for, and recognised as",
            heat_table("", [str(label) for label in labels], counts.tolist()),
            "A row for each class asked for, a column for each that the classifier recognised.",
        ),
    )


def main(p: Params) -> None:
    generated, test = (columns(REPORTS / f"{name}.csv", *EACH) for name in ("generated", "test"))
    metrics = read_json(METRICS, **dict.fromkeys(SHOWN, float))
    met, others = judged()
    with arrays.reading(IMAGES, IMAGES_FORMAT) as images, arrays.reading(SAMPLES, SAMPLES_FORMAT) as samples:
        sources = Sources(images, samples, generated, test, named(images))
        pictures: list[Picture] = [draw(sources) for draw in GALLERY]
        origin = provenance(p, images)
        dataset = str(images.attribute("dataset"))
    for picture in pictures:
        sheet(REPORTS / f"{picture.name}.png", picture, p.report.zoom)
    one_each = next(picture.images[:, 0] for picture in pictures if picture.name == "samples")
    parts = {
        "Verdict": conditions(met, others),
        "Four rows": f'<div class="card">{comparisons(metrics, p.evaluate.pixel_components)}</div>',
        "Pictures": cards(*(figure(picture, p.report.zoom) for picture in pictures)),
        "Curves": curves(),
        "Classes": classes(generated, sources.classes),
        "Where it comes from": origin,
    }
    body = [
        *overview(metrics, verdict(met, others), dataset, len(generated["label"]), one_each[:WIDE], p.report.zoom),
        contents(parts),
        *(part for name, body in parts.items() for part in (heading(name), body)),
    ]
    with replacing(REPORTS / "report.html") as part:
        part.write_text(page("lfm: report", body), encoding="utf-8")


if __name__ == "__main__":
    run(
        main,
        "data",
        "autoencoder",
        "classifier",
        "encode",
        "model",
        "flow",
        "train",
        "sample",
        "likelihood",
        "evaluate",
        "report",
    )

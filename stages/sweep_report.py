"""Not a stage of the pipeline: the points of `stages.sweep` → sweeps/cost.csv, sweeps/guidance.csv and sweeps/report.html."""

from pathlib import Path
from typing import Any

from pipeline.charts import chart
from pipeline.files import read_json, replacing, write_csv
from pipeline.page import cards, page, titled
from pipeline.params import Params
from stages.cli import run

SWEEPS = Path("sweeps")
KEYS = {
    "solver": str,
    **dict.fromkeys(("guidance", "evaluations", "fd", "fd_validation", "accuracy"), float),
    "images": int,
}


def points(kind: str) -> list[dict[str, Any]]:
    return [read_json(path, **KEYS) for path in sorted((SWEEPS / "points").glob(f"{kind}-*.json"))]


def main(p: Params) -> None:
    guidance = sorted(points("guidance"), key=lambda q: q["guidance"])
    for q in guidance:
        q["default"] = int(q["guidance"] == p.sample.guidance_scale)
    default = next((q for q in guidance if q["default"]), None)
    cost = [q | {"default": 0} for q in points("cost")] + ([default] if default else [])
    cost.sort(key=lambda q: (q["solver"], q["evaluations"]))
    columns = [*KEYS, "default"]
    for name, rows in (("cost", cost), ("guidance", guidance)):
        write_csv(SWEEPS / f"{name}.csv", columns, ([q[key] for key in columns] for q in rows))
    solvers = {q["solver"]: [r for r in cost if r["solver"] == q["solver"]] for q in cost}
    lines = {name: ([q["evaluations"] for q in rows], [q["fd"] for q in rows]) for name, rows in solvers.items()}
    images = cost[0]["images"]
    scales, real = [q["guidance"] for q in guidance], ("real images", cost[0]["fd_validation"])

    def ring(x: str, y: str) -> tuple[float, float] | None:
        return (default[x], default[y]) if default else None

    body = [
        "<h1>Quality against cost</h1>",
        f'<p class="soft">{images:,} images a point: a sample this small adds to every distance, to that of real '
        "images too. The ring is the default.</p>",
        cards(
            titled("Fréchet distance against function evaluations", chart(
                lines, "passes through the transformer an image", "Fréchet distance", True, True, True,
                ring("evaluations", "fd"), real,
            )),
            titled("Fréchet distance against guidance", chart(
                {"distance": (scales, [q["fd"] for q in guidance])}, "guidance scale", "Fréchet distance",
                marks=True, marked=ring("guidance", "fd"), level=real,
            )),
            titled("Accuracy against guidance", chart(
                {"accuracy": (scales, [q["accuracy"] for q in guidance])}, "guidance scale", "percent recognised",
                marks=True, marked=ring("guidance", "accuracy"),
            )),
            kind="three",
        ),
    ]  # fmt: skip
    with replacing(SWEEPS / "report.html") as part:
        part.write_text(page("lfm: quality against cost", body), encoding="utf-8")


if __name__ == "__main__":
    run(main)

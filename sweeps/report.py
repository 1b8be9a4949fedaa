"""The points of `sweeps.point` → sweeps/cost.csv, sweeps/guidance.csv and sweeps/report.html."""

import itertools
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import read_json, write_csv
from pipeline.entry import out_path
from pipeline.page.charts import Line, chart
from pipeline.page.html import page
from pipeline.params import load_yaml
from pipeline.run import Context, run

SWEEPS, DEFAULT = Path("sweeps"), "guidance-default"
KEYS = {
    "solver": str,
    **dict.fromkeys(("guidance", "evaluations", "fd", "fd_validation", "accuracy"), float),
    "images": int,
}


def points(*stages: str) -> dict[str, dict[str, Any]]:
    """Name → figures of the points of these stages of sweeps/dvc.yaml alone: sweeps/points also holds older ones."""
    matrices = load_yaml((SWEEPS / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    figures = {}
    for stage in (matrices[name] for name in stages):
        for values in itertools.product(*stage["matrix"].values()):
            path = str(out_path(stage["outs"][0]))
            for key, value in zip(stage["matrix"], values, strict=True):
                path = path.replace(f"${{item.{key}}}", str(value))
            figures[Path(path).stem] = read_json(Path(path), **KEYS)
    return figures


def main(context: Context) -> None:
    scaled = {name: q | {"default": int(name == DEFAULT)} for name, q in points("guidance").items()}
    guidance, default = sorted(scaled.values(), key=lambda q: q["guidance"]), scaled[DEFAULT]
    cost = [*(q | {"default": 0} for q in points("cost", "adaptive").values()), default]
    cost.sort(key=lambda q: (q["solver"], q["evaluations"]))
    columns = [*KEYS, "default"]
    for name, rows in (("cost", cost), ("guidance", guidance)):
        with context.publish(SWEEPS / f"{name}.csv") as part:
            write_csv(part, columns, ([q[key] for key in columns] for q in rows))
    real = ("real images", cost[0]["fd_validation"])

    def line(rows: list[dict[str, Any]], x: str, y: str) -> Line:
        return [q[x] for q in rows], [q[y] for q in rows]

    by_solver = {q["solver"]: [r for r in cost if r["solver"] == q["solver"]] for q in cost}
    html = page(
        "sweep",
        images=f"{cost[0]['images']:,}",
        fd_by_evaluations=chart(
            {name: line(rows, "evaluations", "fd") for name, rows in by_solver.items()},
            "transformer passes per image", "Fréchet distance", True, True, True,
            (default["evaluations"], default["fd"]), real,
        ),
        fd_by_guidance=chart(
            {"distance": line(guidance, "guidance", "fd")}, "guidance scale", "Fréchet distance",
            marks=True, marked=(default["guidance"], default["fd"]), level=real,
        ),
        accuracy_by_guidance=chart(
            {"accuracy": line(guidance, "guidance", "accuracy")}, "guidance scale", "percent recognised",
            marks=True, marked=(default["guidance"], default["accuracy"]),
        ),
    )  # fmt: skip
    with context.publish(SWEEPS / "report.html") as part:
        part.write_text(html, encoding="utf-8")


if __name__ == "__main__":
    run(main, "report", SWEEPS / "dvc.yaml")

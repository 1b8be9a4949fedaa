"""The points of `sweeps.points` → sweeps/cost.csv, sweeps/guidance.csv and sweeps/report.html."""

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from pipeline.artifacts.files import read_json, write_csv
from pipeline.page.charts import Line, chart
from pipeline.page.html import page
from pipeline.params import load_yaml
from pipeline.run import Context, run

SWEEPS = Path("sweeps")


class Point(TypedDict):
    """What `sweeps.points` writes of a point."""

    solver: str
    guidance: float
    evaluations: float
    fd: float
    fd_test: float
    accuracy: float
    images: int
    default: int


COLUMNS = tuple(Point.__annotations__)
Points = list[dict[str, Any]]


def points(name: str) -> Points:
    """The points of a file that `sweeps.points` wrote. Raises `UserError` where one of them is no `Point`."""
    found: Points = read_json(SWEEPS / "points" / f"{name}.json", points=list[Point])["points"]
    return found


def main(context: Context) -> None:
    solvers = load_yaml((SWEEPS / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["cost"]["foreach"]
    guidance = sorted(points("guidance"), key=lambda q: q["guidance"])
    default = next(q for q in guidance if q["default"])
    cost = [q for solver in solvers for q in points(solver) if not q["default"]] + [default]
    cost.sort(key=lambda q: (q["solver"], q["evaluations"]))
    for name, rows in (("cost", cost), ("guidance", guidance)):
        with context.publish(SWEEPS / f"{name}.csv") as part:
            write_csv(part, COLUMNS, ([q[key] for key in COLUMNS] for q in rows))
    real = ("test images", default["fd_test"])

    def line(rows: Points, x: str, y: str) -> Line:
        return [q[x] for q in rows], [q[y] for q in rows]

    by_solver = {q["solver"]: [r for r in cost if r["solver"] == q["solver"]] for q in cost}
    html = page(
        "sweep",
        images=f"{default['images']:,}",
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

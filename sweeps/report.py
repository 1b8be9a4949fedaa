"""Not a stage of the pipeline: the points of `sweeps.point` → sweeps/cost.csv, sweeps/guidance.csv and sweeps/report.html."""

import itertools
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts.files import read_json, replacing, write_csv
from pipeline.page.charts import chart
from pipeline.page.html import cards, page, titled
from pipeline.params import Loader, Params
from pipeline.run import run

SWEEPS, DEFAULT = Path("sweeps"), "guidance-default"
KEYS = {
    "solver": str,
    **dict.fromkeys(("guidance", "evaluations", "fd", "fd_validation", "accuracy"), float),
    "images": int,
}


def points(*stages: str) -> dict[str, dict[str, Any]]:
    """Name → figures of the points that these stages of sweeps/dvc.yaml make: DVC leaves there what they made once."""
    known, found = yaml.load((SWEEPS / "dvc.yaml").read_text(encoding="utf-8"), Loader)["stages"], {}
    for stage in (known[name] for name in stages):
        for values in itertools.product(*stage["matrix"].values()):
            path = stage["outs"][0]
            for key, value in zip(stage["matrix"], values, strict=True):
                path = path.replace(f"${{item.{key}}}", str(value))
            found[Path(path).stem] = read_json(Path(path), **KEYS)
    return found


def main(p: Params) -> None:
    scaled = {name: q | {"default": int(name == DEFAULT)} for name, q in points("guidance").items()}
    guidance, default = sorted(scaled.values(), key=lambda q: q["guidance"]), scaled[DEFAULT]
    cost = [*(q | {"default": 0} for q in points("cost", "adaptive").values()), default]
    cost.sort(key=lambda q: (q["solver"], q["evaluations"]))
    columns = [*KEYS, "default"]
    for name, rows in (("cost", cost), ("guidance", guidance)):
        write_csv(SWEEPS / f"{name}.csv", columns, ([q[key] for key in columns] for q in rows))
    solvers = {q["solver"]: [r for r in cost if r["solver"] == q["solver"]] for q in cost}
    lines = {name: ([q["evaluations"] for q in rows], [q["fd"] for q in rows]) for name, rows in solvers.items()}
    images = cost[0]["images"]
    scales, real = [q["guidance"] for q in guidance], ("real images", cost[0]["fd_validation"])

    def ring(x: str, y: str) -> tuple[float, float]:
        return default[x], default[y]

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
    run(main, "sample", of=("sweeps/dvc.yaml", "report"))

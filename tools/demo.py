"""Not a stage: what `make demo` runs. Digits from the bundled flow at once, then the whole pipeline on a small data set."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lfm.generator import load_generator
from pipeline.artifacts.files import METRICS, PRETRAINED, REPORTS
from pipeline.errors import UserError
from pipeline.page.pictures import Picture, sheet
from pipeline.params import Params
from pipeline.progress import say
from pipeline.run import run
from tools.workspace import make_workspace

DEMO = Path("demo")
PRESET = Path("presets/digits")
CLASSES, COLUMNS = 10, 10


def draw(p: Params) -> Path:
    """A grid of digits drawn from noise with the bundled flow, a class a row."""
    generator = load_generator(PRETRAINED / "flow", PRETRAINED / "autoencoder", p.sample)
    rows = np.arange(CLASSES * COLUMNS)
    images = generator.decode(generator.integrate(rows, rows // COLUMNS).x[-1])
    path = DEMO / "mnist_from_noise.png"
    DEMO.mkdir(exist_ok=True)
    grid = images.reshape(CLASSES, COLUMNS, *images.shape[1:])
    sheet(path, Picture("mnist", "Digits from noise", grid, [str(c) for c in range(CLASSES)]), p.report.zoom)
    return path


def main(p: Params) -> None:
    picture = draw(p)
    say(f"MNIST digits drawn from noise by the bundled flow: {picture}\n")
    say(
        "Now the whole pipeline on scikit-learn's digits: fetch, autoencoder, encode, classifier, train, sample, evaluate, report"
    )
    workspace = DEMO / "digits"
    make_workspace(Path(), workspace, PRESET)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DVC_")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    if subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=workspace, env=environment).returncode:
        raise UserError(f"the demo's pipeline in {workspace} stopped; the lines above say why")
    say("\nDone. To look at:")
    for path in [picture, workspace / REPORTS / "report.html", workspace / METRICS]:
        say(f"  {path}")


if __name__ == "__main__":
    run(main)

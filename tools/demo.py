"""What `make demo` runs: digits from the bundled flow at once, then the whole pipeline on a small data set."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lfm.model import LatentFlow
from pipeline.errors import UserError
from pipeline.machine.device import device
from pipeline.machine.publish import replacing
from pipeline.page.pictures import Picture, sheet
from pipeline.progress import say
from pipeline.run import ending_in_one_line
from tools.workspace import make_workspace

DEMO = Path("demo")
PRESET = Path("presets/digits")
COLUMNS, ZOOM = 10, 2


def draw() -> Path:
    """A grid of digits drawn from noise with the bundled flow, a class a row."""
    model = LatentFlow.from_pretrained().to(device())
    images = np.asarray(model.sample(range(model.classes), COLUMNS, seed=0, output_type="np").images)
    grid = images.reshape(model.classes, COLUMNS, *images.shape[1:])
    path = DEMO / "mnist_from_noise.png"
    with replacing(path) as part:
        rows = [str(c) for c in range(model.classes)]
        sheet(part, Picture("mnist", "Digits from noise", grid, rows), ZOOM)
    return path


def main() -> None:
    picture = draw()
    say(f"MNIST digits drawn from noise by the bundled flow: {picture}\n")
    say("Now the whole pipeline on scikit-learn's digits, from fetch to report:")
    workspace = DEMO / "digits"
    make_workspace(Path(), workspace, PRESET)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DVC_")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    if subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=workspace, env=environment).returncode:
        raise UserError(f"the demo's pipeline in {workspace} stopped; the lines above say why")
    say("\nDone. To look at:")
    for path in [picture, workspace / "reports/report.html", workspace / "reports/metrics.json"]:
        say(f"  {path}")


if __name__ == "__main__":
    with ending_in_one_line():
        main()

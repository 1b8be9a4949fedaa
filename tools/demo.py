"""What `make demo` runs: digits from the bundled flow at once, then a flow trained from scratch on real digits, offline."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lfm.model import LatentFlow
from pipeline.artifacts.files import read_json
from pipeline.errors import UserError
from pipeline.machine.device import device
from pipeline.machine.publish import replacing
from pipeline.page.pictures import Picture, sheet
from pipeline.progress import say
from pipeline.run import ending_in_one_line
from tools.mend import at_work, mend
from tools.workspace import make_workspace

DEMO = Path("demo")
WORKSPACE = DEMO / "mnist_sample"
PRESET = Path("presets/demo")
COLUMNS, ZOOM = 10, 2


def draw() -> Path:
    """A grid of digits drawn from noise with the bundled flow, a class a row."""
    model = LatentFlow.from_pretrained().to(device())
    images = np.asarray(model.sample(range(model.classes), COLUMNS, seed=0, steps=4, output_type="np").images)
    grid = images.reshape(model.classes, COLUMNS, *images.shape[1:])
    path = DEMO / "mnist_from_noise.png"
    with replacing(path) as part:
        rows = [str(c) for c in range(model.classes)]
        sheet(part, Picture("mnist", "Digits from noise", grid, rows), ZOOM)
    return path


def prepare(workspace: Path, preset: Path = PRESET) -> None:
    """Make the workspace, or bring an earlier one up to date: what a killed demo left unreadable there is removed."""
    if working := at_work(workspace.resolve()):
        raise UserError(f"{workspace}: another demo is at work here (process {working[0]}); wait for it or stop it")
    make_workspace(Path(), workspace, preset)
    for removed in mend(workspace):
        say(f"{removed}: an earlier demo was killed while it was written; removed")


def summary(workspace: Path, seconds: float) -> str:
    """What was made, how good it is, and what to do next."""
    f, folder = read_json(workspace / "reports/metrics.json"), workspace / "models/latent_flow"
    return f"""
Done in {seconds:.0f} s: a flow with random weights has learned from 6,000 real digits to write new ones.
  {workspace}/reports/pictures/samples.png    its digits, not selected
  {workspace}/reports/report.html    all pictures and figures
How good: a classifier reads {f["accuracy_generated"]:.1f} % of its digits as the digit asked for (real ones:
{f["accuracy_test"]:.1f} %).
Fréchet distance to real test digits (lower is closer): {f["fd_generated"]:.2f}; other real digits are at {f["fd_validation"]:.2f}.
What next, after `source .venv/bin/activate`:
  lfm sample 2 0 2 6 -m {folder} -o year.png    write with the new flow
  lfm sample 2 0 2 6 -o better.png    write with the bundled one, trained longer and on all of MNIST
  make repro    train on all of MNIST yourself: downloads 12 MB, takes 10 minutes or more
Or change a value in {PRESET} and run `make demo` again: only what depends on it runs."""


def main() -> None:
    say(f"Digits drawn from noise by the bundled flow: {draw()}")
    say("\nNow a flow is trained from scratch on 6,000 real digits, and measured: eleven stages, two to four minutes.")
    began = time.monotonic()
    prepare(WORKSPACE)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DVC_")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    if subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=WORKSPACE, env=environment).returncode:
        raise UserError(f"the demo's pipeline in {WORKSPACE} stopped; the lines above say why")
    say(summary(WORKSPACE, time.monotonic() - began))


if __name__ == "__main__":
    with ending_in_one_line():
        main()

"""Latents that scale past memory: MNIST's 70,000 images against 20 times as many, encoded, then read for an epoch, in memory
and streamed. Seconds, rates and each process's peak memory.

After `dvc repro`: python -m benchmarks.store
"""

import datetime
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lfm.nets.latents import LatentScale
from pipeline.artifacts import hdf5, images, latents
from pipeline.params import load_params
from stages.train import batch, draws
from tools.workspace import make_workspace

IMAGES, LATENTS, AUTOENCODER = Path("data/images.h5"), Path("data/latents.h5"), Path("models/autoencoder")
ROOT, FOLDER, TIMES = Path.cwd(), Path("large"), 20
EVERYTHING = 10**9  # MB


def enlarge(target: Path) -> None:
    """The training images over and over, until all splits together are 20 times as many; written a piece at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with hdf5.reading(IMAGES, images.FORMAT) as file, hdf5.writing(target) as out:
        small = {split: file.shape(f"{split}/labels")[0] for split in ("train", "validation", "test")}
        rows = TIMES * sum(small.values()) - small["validation"] - small["test"]
        for split, n in small.items():
            pictures, labels = file.read(f"{split}/images"), file.read(f"{split}/labels")
            total = rows if split == "train" else n
            out.create(f"{split}/images", (total, *pictures.shape[1:]), np.uint8)
            out.create(f"{split}/labels", (total,), np.uint8)
            for start in range(0, total, n):
                out.put(f"{split}/images", start, pictures[: total - start])
                out.put(f"{split}/labels", start, labels[: total - start])
        out.attributes(**file.attributes)


def epoch(megabytes: int) -> None:
    """In a process of its own: every batch of one epoch, as the training sees it."""
    p = load_params()
    with hdf5.reading(LATENTS, latents.FORMAT) as file:
        scale = LatentScale(*(torch.from_numpy(file.read(f"scale/{name}")) for name in ("mean", "std")))
        data = latents.opened(file, "train", scale, torch.device("cpu"), megabytes)
        steps = len(data) // p.train.batch_size
        began = time.perf_counter()
        for step in range(steps):
            data.batch(0, step, p.train.batch_size)
        alone = time.perf_counter() - began
        began = time.perf_counter()
        for step in range(steps):
            rows_of_step = data.batch(0, step, p.train.batch_size)
            batch(p.flow, p.train, 10, rows_of_step, *draws(p.flow, p.train, 1.0, data.shape, step))
        drawn = time.perf_counter() - began
    rows = steps * p.train.batch_size
    print(f"{rows / alone:,.0f} | {rows / drawn:,.0f}")


def watched(words: list[str], folder: Path | None = None) -> tuple[str, float, float]:
    """What a command printed, its seconds, and its peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    printed = process.stdout.read().strip()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(words)}: failed")
    return printed, time.perf_counter() - began, used.ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e6


def main() -> None:
    if len(sys.argv) == 2:
        return epoch(int(sys.argv[1]))
    for folder in (FOLDER / "1", FOLDER / "20"):
        make_workspace(ROOT, folder)
        shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
        shutil.copytree(AUTOENCODER, folder / AUTOENCODER)
    (FOLDER / "1" / IMAGES).parent.mkdir(exist_ok=True)
    shutil.copyfile(IMAGES, FOLDER / "1" / IMAGES)
    enlarge(FOLDER / "20" / IMAGES)
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}\n")
    print(
        "| images | what | seconds | peak memory, MB | rows a second, read | with all that is drawn |\n|---|---|---|---|---|---|"
    )
    for name in ("1", "20"):
        _, seconds, peak = watched(["-m", "stages.encode"], FOLDER / name)
        print(f"| {name} × MNIST | encode | {seconds:.0f} | {peak:,.0f} | | |", flush=True)
        for kind, megabytes in {"in memory": EVERYTHING, "streamed": 0}.items():
            printed, seconds, peak = watched(["-m", "benchmarks.store", str(megabytes)], FOLDER / name)
            print(f"| {name} × MNIST | an epoch, {kind} | {seconds:.0f} | {peak:,.0f} | {printed} |", flush=True)
    shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()

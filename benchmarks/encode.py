"""How near encoding, files and all, comes to the autoencoder's bare forward pass, on the same device in the same run.

After `dvc repro`: python -m benchmarks.encode
"""

import datetime
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lfm.precision import precision
from pipeline.artifacts import hdf5, images
from pipeline.machine.scratch import Scratch
from pipeline.params import load_params
from pipeline.progress import Progress
from stages.encode import Encoder, assemble, parts

IMAGES, AUTOENCODER = Path("data/images.h5"), Path("models/autoencoder")
ROWS, TIMES = 20_000, 5


def seconds_of(work: Callable[[], None]) -> float:
    """How long a call takes, until the device has done it."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.inference_mode()
def main() -> None:
    p = load_params().encode
    with hdf5.reading(IMAGES, images.FORMAT) as file, tempfile.TemporaryDirectory(dir=".") as folder:
        encoder = Encoder(AUTOENCODER, p, file)
        rows = min(ROWS, file.shape("train/labels")[0]) // p.batch_size * p.batch_size
        pictures = torch.from_numpy(file.read("train/images", 0, rows))
        ready = [encoder.coder.pixels(part.to(encoder.device)) for part in pictures.split(p.batch_size)]

        def bare() -> None:
            for pixels in ready:
                with precision(p.precision, encoder.device):
                    encoder.coder.model.encode(pixels)

        def whole(turn: int) -> None:
            place = Path(folder) / str(turn)
            place.mkdir()
            with hdf5.writing(place / "latents.h5") as latents, Progress(rows, "encode", "image", False) as progress:
                assemble(parts({"train": rows}, p.batch_size), encoder, latents, Scratch(place), progress)

        bare()
        whole(-1)  # both warm
        pairs = [(seconds_of(bare), seconds_of(partial(whole, i))) for i in range(TIMES)]
    forward, stage = (rows / np.array(values) for values in zip(*pairs, strict=True))
    print(
        f"{datetime.date.today()}, {encoder.device}, {os.cpu_count()} cores, {platform.machine()}, {rows:,} images, {p.precision}"
    )
    print("| | images a second, median | least | most |\n|---|---|---|---|")
    for name, rates in {"bare forward pass": forward, "encoded, kept and assembled": stage}.items():
        print(f"| {name} | {np.median(rates):,.0f} | {np.min(rates):,.0f} | {np.max(rates):,.0f} |")
    print(f"\nratio, median of {TIMES} pairs: {np.median(stage / forward):.3f}")


if __name__ == "__main__":
    main()

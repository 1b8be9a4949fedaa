"""How near encoding, files and all, comes to the autoencoder's bare forward pass, on the same device in the same run.

After `dvc repro`: python -m benchmarks.encode
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import alternate, options, ratio, report
from lfm.precision import precision, resolve
from pipeline.artifacts import hdf5, images
from pipeline.machine.device import device
from pipeline.machine.scratch import Scratch
from pipeline.params import load_params
from pipeline.progress import Progress
from stages.encode import Encoder, assemble, parts

IMAGES, AUTOENCODER = Path("data/images.h5"), Path("models/autoencoder")
ROWS = 20_000


@torch.inference_mode()
def main() -> None:
    o, p = options(__doc__).parse_args(), load_params().encode
    with hdf5.reading(IMAGES, images.FORMAT) as file, tempfile.TemporaryDirectory(dir=".") as folder:
        encoder = Encoder(AUTOENCODER, p, file, device())
        rows = min(ROWS, file.shape("train/labels")[0]) // p.batch_size * p.batch_size
        pictures = torch.from_numpy(file.read("train/images", 0, rows))
        turns = itertools.count()
        ready = [encoder.coder.pixels(part.to(encoder.device)) for part in pictures.split(p.batch_size)]

        def bare() -> None:
            for pixels in ready:
                with precision(p.precision, encoder.device):
                    encoder.coder.model.encode(pixels)

        def whole() -> None:
            place = Path(folder) / str(next(turns))
            place.mkdir()
            with hdf5.writing(place / "latents.h5") as latents, Progress(rows, "encode", "image", False) as progress:
                assemble(parts({"train": rows}, p.batch_size), encoder, latents, Scratch(place), progress)

        names = "bare forward pass", "encoded, kept and assembled"
        seconds = alternate(dict(zip(names, (bare, whole), strict=True)), o.rounds, encoder.device, warm=1)
    rates = {name: rows / s for name, s in seconds.items()}
    table = [
        (name, f"{np.median(r):,.0f}", f"{min(r):,.0f}", f"{max(r):,.0f}", f"{ratio(r, rates[names[0]]):.3f}")
        for name, r in rates.items()
    ]
    columns = (f"{rows:,} images", "images/s, median", "least", "most", "× bare")
    figures = {"precision": resolve(p.precision, encoder.device), "images": rows, "images_per_second": rates}
    report("encode", encoder.device, columns, table, {"rounds": o.rounds, **figures})


if __name__ == "__main__":
    main()

"""Noise integrated to latents and decoded, and real images through the autoencoder → data/samples.h5."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfm import autoencoder
from lfm.autoencoder import ImageAutoencoder
from lfm.guidance import guided
from lfm.latents import LatentScale
from lfm.solver import Solution, integrate, uniform_grid
from lfm.transformer import Transformer
from lfm.weights import load_model
from pipeline import arrays, random
from pipeline.errors import UserError
from pipeline.files import (
    AUTOENCODER,
    FLOW,
    LATENTS,
    LATENTS_FORMAT,
    PROGRESS_FORMAT,
    SAMPLES,
    SAMPLES_FORMAT,
    read_json,
    sha256_of,
)  # fmt: skip
from pipeline.params import Params, SampleParams
from pipeline.report import Progress
from pipeline.runtime import device, precision
from stages.cli import run

FLOW_KEYS = ("scale_mean", "scale_std", "image_channels", "image_height", "image_width", "autoencoder_sha256")


class Generator:
    """A trained flow with its autoencoder: labels and row numbers in, images out."""

    def __init__(
        self, transformer: Transformer, coder: ImageAutoencoder, flow: dict[str, Any], p: SampleParams
    ) -> None:
        self.transformer, self.coder, self.p = transformer, coder, p
        self.scale = LatentScale(torch.tensor(flow["scale_mean"]), torch.tensor(flow["scale_std"]))
        self.where = next(transformer.parameters()).device

    @torch.inference_mode()
    def integrate(self, rows: np.ndarray, labels: np.ndarray, at: list[int] | None = None) -> Solution:
        """Latents (T, B, c, h, w) of these rows at grid points `at` (the end by default), and what they cost."""
        config = self.transformer.config
        shape = [int(config[name]) for name in ("channels", "size", "size")]
        noise = random.normal_rows(self.p.seed, "sample", rows.tolist(), shape).to(self.where)
        y = torch.from_numpy(labels.astype(np.int64)).to(self.where)
        velocity = guided(self.transformer, y, self.p.guidance_scale, self.transformer.null_label)
        with precision(self.p.precision, self.where):
            return integrate(velocity, noise, uniform_grid(self.p.steps), self.p.solver, at)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents (B, c, h, w) → 8-bit images (B, C, H, W)."""
        with precision(self.p.precision, self.where):
            return self.coder.decode(self.scale.restore(latents.to(self.where))).cpu().numpy()


def batches(n: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(how many count, their rows): every batch has `size` rows, the last one starts again at row 0 to be full."""
    for start in range(0, n, size):
        yield min(size, n - start), np.arange(start, start + size) % n


def load_generator(flow_folder: Path, coder_folder: Path, p: SampleParams) -> Generator:
    """A trained flow and the autoencoder it was trained with. Raises `UserError` where they do not belong together."""
    flow = read_json(flow_folder / "flow.json", *FLOW_KEYS)
    found = sha256_of(coder_folder, (autoencoder.CONFIG, autoencoder.WEIGHTS))
    if flow["autoencoder_sha256"] != found:
        raise UserError(
            f"{flow_folder} was trained with another autoencoder ({flow['autoencoder_sha256'][:12]}…) "
            f"than {coder_folder} ({found[:12]}…); run `dvc repro`"
        )
    size = (flow["image_height"], flow["image_width"])
    coder = ImageAutoencoder(autoencoder.load(coder_folder), flow["image_channels"], size).to(device())
    return Generator(load_model(flow_folder, Transformer).to(device()), coder, flow, p)


def main(p: Params) -> None:
    with (
        arrays.reading(LATENTS, LATENTS_FORMAT) as latents,
        arrays.reading(FLOW / "progress.h5", PROGRESS_FORMAT) as progress_file,
    ):
        generator = load_generator(FLOW, AUTOENCODER, p.sample)
        image, batch = (generator.coder.channels, *generator.coder.size), p.sample.batch_size
        labels = latents.read("test/labels")
        real = ("validation", "test")
        total = len(labels) + sum(latents.shape(f"{split}/labels")[0] for split in real)
        with (
            arrays.writing(SAMPLES) as out,
            Progress(total, "sample", "image", p.runtime.progress) as progress,
        ):
            out.add("generated/labels", labels)
            out.create("generated/images", (len(labels), *image), np.uint8)
            for count, rows in batches(len(labels), batch):
                solution = generator.integrate(rows, labels[rows])
                out.put("generated/images", rows[0], generator.decode(solution.x[-1])[:count])
                progress.advance(count)
            for split in real:
                mean = latents.read(f"{split}/mean")
                out.create(f"reconstructed/{split}", (len(mean), *image), np.uint8)
                for count, rows in batches(len(mean), batch):
                    scaled = generator.scale.normalise(torch.from_numpy(mean[rows]))
                    out.put(f"reconstructed/{split}", rows[0], generator.decode(scaled)[:count])
                    progress.advance(count)

            first = np.array([np.flatnonzero(labels == label)[0] for label in np.unique(labels)])
            at = sorted(
                {round(t * p.sample.steps) for t in p.sample.trajectory_times}
            )  # the nearest points of the grid
            states = generator.integrate(first, labels[first], at).x
            out.add("trajectories/times", np.array(at) / p.sample.steps)
            out.add("trajectories/images", np.stack([generator.decode(x) for x in states]))
            snapshots = torch.from_numpy(progress_file.read("latents"))
            out.add("progress/steps", progress_file.read("steps"))
            out.add("progress/images", np.stack([generator.decode(x) for x in snapshots]))
            evaluations = solution.nfe * (1 if p.sample.guidance_scale in (0, 1) else 2)
            out.attributes(
                format=SAMPLES_FORMAT, nfe=evaluations, seed=p.sample.seed, dataset=latents.attribute("dataset")
            )


if __name__ == "__main__":
    run(main, "sample")

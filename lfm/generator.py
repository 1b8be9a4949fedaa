"""Not a stage: a trained flow with its autoencoder, as `sample` and the demo use it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lfm import random
from lfm.model import Flow, load_flow
from lfm.nets import autoencoder
from lfm.nets.autoencoder import ImageAutoencoder
from lfm.sampling.guidance import guided
from lfm.sampling.solver import Solution, euler_maruyama, integrate, time_grid
from pipeline.artifacts.files import sha256_of
from pipeline.errors import UserError
from pipeline.machine.runtime import device, precision
from pipeline.params import SampleParams


class Generator:
    """Labels and row numbers in, images out."""

    def __init__(self, flow: Flow, coder: ImageAutoencoder, p: SampleParams) -> None:
        self.flow, self.coder, self.p = flow, coder, p
        self.where = next(flow.transformer.parameters()).device
        self.grid = time_grid(p.steps, p.time_shift, flow.end)
        self.passes = 0  # rows that went through the transformer so far
        flow.transformer.register_forward_hook(self._count)

    def _count(self, module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.passes += len(output)

    def labels(self, labels: np.ndarray) -> Tensor:
        """Labels (B,) as the transformer takes them."""
        return torch.from_numpy(labels.astype(np.int64)).to(self.where)

    def noise(self, rows: np.ndarray) -> Tensor:
        """The noise (B, c, h, w) of these rows."""
        return random.normal_rows(self.p.seed, "sample", rows.tolist(), self.flow.shape).to(self.where)

    def guided(self, labels: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided velocity (t, x) ↦ v of these labels."""
        p, first_last = self.p, (self.p.guidance_interval[0], self.p.guidance_interval[1])
        null = self.flow.transformer.null_label
        return guided(self.flow.velocity, self.labels(labels), p.guidance_scale, null, first_last)

    @torch.inference_mode()
    def integrate(self, rows: np.ndarray, labels: np.ndarray, at: list[int] | None = None) -> Solution:
        """Latents (T, B, c, h, w) of these rows at grid points `at` (the end by default)."""
        p, x0, velocity, grid = self.p, self.noise(rows), self.guided(labels), self.grid

        def kicks(step: int) -> Tensor:
            return random.normal_rows(p.seed, f"noise of step {step}", rows.tolist(), self.flow.shape).to(self.where)

        with precision(p.precision, self.where):
            if p.solver == "euler_maruyama":
                return euler_maruyama(velocity, self.flow.path, x0, grid, kicks, p.noise_strength, at)
            return integrate(velocity, x0, grid, p.solver, at, p.rtol, p.atol)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents (B, c, h, w) → 8-bit images (B, C, H, W)."""
        with precision(self.p.precision, self.where):
            return self.coder.decode(self.flow.scale.restore(latents.to(self.where))).cpu().numpy()


def batches(n: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(how many count, their rows): every batch has `size` rows, the last one starts again at row 0 to be full."""
    for start in range(0, n, size):
        yield min(size, n - start), np.arange(start, start + size) % n


def load_generator(flow_folder: Path, coder_folder: Path, p: SampleParams) -> Generator:
    """A trained flow and the autoencoder it was trained with. Raises `UserError` where they do not belong together."""
    flow = load_flow(flow_folder, device())
    found = sha256_of(coder_folder, (autoencoder.CONFIG, autoencoder.WEIGHTS))
    if flow.autoencoder_sha256 != found:
        raise UserError(
            f"{flow_folder} was trained with another autoencoder ({flow.autoencoder_sha256[:12]}…) "
            f"than {coder_folder} ({found[:12]}…); run `dvc repro`"
        )
    if flow.transformer.label is None and p.guidance_scale != 1:
        raise UserError(
            f"sample.guidance_scale {p.guidance_scale:g} needs labels, and {flow_folder} knows none; set it to 1"
        )
    coder = ImageAutoencoder(autoencoder.load(coder_folder), flow.image[0], flow.image[1:]).to(device())
    return Generator(flow, coder, p)

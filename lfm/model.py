"""`LatentFlow`: a trained flow with its autoencoder, as people use it. Labels in, images out, and back.

A model is one folder:

    config.json, model.safetensors   the transformer
    flow.json                        path, prediction, scale of the latents, what images it was trained on
    sampling.json                    the values of `Sampler` that its samples are drawn with
    weak/                            optional: the weak model of autoguidance, config.json and model.safetensors
    flow_map/                        optional: what samples in few evaluations, the same two files
    autoencoder/                     what diffusers' `AutoencoderKL.from_pretrained` opens
"""

import functools
import inspect
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lfm import random
from lfm.errors import ConfigError
from lfm.flow.path import LEAST_SIGMA, PATHS, as_velocity, last_time, make_path
from lfm.nets.flow_map import FlowMap
from lfm.nets.latents import LatentScale
from lfm.nets.transformer import Transformer
from lfm.nets.weights import digest, load_model, read_config, save_model
from lfm.precision import PRECISIONS
from lfm.precision import precision as precision_context
from lfm.sampling.guidance import NONE, Guidance, guided
from lfm.sampling.inversion import generate, invert, slerp
from lfm.sampling.likelihood import exact_divergence, hutchinson_divergence, log_likelihood
from lfm.sampling.sampler import MOST_STEPS, Sampler
from lfm.sampling.solver import ADAPTIVE, FIXED_STEP, time_grid

if TYPE_CHECKING:
    from lfm.nets.autoencoder import ImageAutoencoder

BUNDLED = Path(__file__).parent / "pretrained/mnist"
FLOW, SAMPLING, AUTOENCODER, FLOW_MAP, WEAK = "flow.json", "sampling.json", "autoencoder", "flow_map", "weak"
AUTOENCODER_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
HUB_FILES = ("*.json", "*.safetensors", "*/*.json", "*/*.safetensors")
INVERSION_STEPS = 50  # of rk4: to the noise and back within 1e-4 of a normalised latent, on MNIST

Output = Literal["pil", "np", "pt", "latent"]
Images = Any  # a PIL image or several, or 8-bit pixels as an array or a tensor: (H, W), (N, H, W) or (N, C, H, W)
Pictures = list[Image.Image] | np.ndarray | Tensor
Labels = int | Sequence[int] | np.ndarray | Tensor | None


@dataclass(frozen=True)
class Samples:
    """Images that were drawn, and what to give to draw them again."""

    images: Pictures  # n: PIL images, uint8 (n, C, H, W), or with output_type "latent" normalised latents (n, c, h, w)
    labels: np.ndarray  # (n,) int64
    seed: int
    nfe: float  # function evaluations: passes through the transformer an image
    path: list[Pictures] | None = None  # with return_path: the images at each of `times`
    times: list[float] | None = None


@dataclass(frozen=True)
class LogProb:
    """log p(x | label) of latents."""

    nats: np.ndarray  # (n,) float32
    standard_error: np.ndarray  # (n,) of each estimate over its probes; 0 where exact, nan with a single probe
    dimensions: int

    @property
    def bits_per_dim(self) -> np.ndarray:
        """−log₂ p per latent dimension, (n,)."""
        return -self.nats / math.log(2) / self.dimensions


P = ParamSpec("P")


def _joining(stream: Callable[P, Iterator[Samples]]) -> Callable[P, Samples]:
    """`stream` with its batches joined into one, the same arguments."""

    @functools.wraps(stream)
    def sample(*args: P.args, **kwargs: P.kwargs) -> Samples:
        return _joined(list(stream(*args, **kwargs)))

    sample.__name__, sample.__qualname__ = "sample", "LatentFlow.sample"
    sample.__signature__ = inspect.signature(stream).replace(return_annotation=Samples)  # type: ignore[attr-defined]
    return sample


class LatentFlow:
    """A velocity transformer, the scale of its latents, and the autoencoder they come from.

    Args:
        transformer: v(t, x, y), or data where `flow["prediction"]` says so.
        flow: the content of flow.json.
        sampler: what `sample` uses where it is told nothing else.
        autoencoder: None for a flow whose latents are all that is wanted.
        flow_map: what samples in few evaluations, fitted to this flow; None where there is none.
        weak: the same transformer after less training, which autoguidance moves away from; None where there is none.

    Raises `ConfigError` where these do not belong together.

    Example:
        >>> model = LatentFlow.from_pretrained()
        >>> drawn = model.sample([3, 1, 4], seed=0)
        >>> drawn.images[0].size, drawn.labels.tolist(), drawn.seed
        ((28, 28), [3, 1, 4], 0)
    """

    def __init__(
        self,
        transformer: Transformer,
        flow: dict[str, Any],
        sampler: Sampler | None = None,
        autoencoder: "ImageAutoencoder | None" = None,
        flow_map: FlowMap | None = None,
        weak: Transformer | None = None,
    ) -> None:
        if len(flow["scale_mean"]) != transformer.channels:
            raise ConfigError(
                f"{FLOW}: a scale of {len(flow['scale_mean'])} channels, and config.json has {transformer.channels}; "
                "they are not of one model, fetch or make it again"
            )
        for name, other in ((FLOW_MAP, flow_map), (WEAK, weak)):
            if other is not None and _what_it_takes(other) != _what_it_takes(transformer):
                raise ConfigError(f"{name}: for other latents or classes than config.json; fetch or make it again")
        self.transformer = transformer.eval().requires_grad_(False)
        self.flow_map = flow_map.eval().requires_grad_(False) if flow_map else None
        self.weak = weak.eval().requires_grad_(False) if weak else None
        self.config = flow
        self.sampler = sampler or Sampler()
        self.path = make_path(flow["path"], flow["sigma_min"])
        self.end = last_time(self.path, divides_by_sigma=flow["prediction"] == "data")
        self.scale = LatentScale(torch.tensor(flow["scale_mean"]), torch.tensor(flow["scale_std"]))
        self.image_shape = (flow["image_channels"], flow["image_height"], flow["image_width"])
        self.latent_shape = (transformer.channels, transformer.size, transformer.size)
        self.classes = transformer.null_label if transformer.label is not None else 0
        velocity_of = functools.partial(
            as_velocity, path=self.path, prediction=flow["prediction"], least_sigma=LEAST_SIGMA
        )
        self._velocity, self._weak_velocity = velocity_of(transformer), velocity_of(weak) if weak else None
        self._autoencoder = autoencoder
        self._passes = 0  # rows that went through the transformer
        for net in self._networks:
            net.register_forward_hook(self._count)

    @property
    def _networks(self) -> list[Transformer]:
        return [net for net in (self.transformer, self.weak, self.flow_map) if net is not None]

    def _count(self, module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._passes += len(output)

    # --- where it comes from, and where it goes ------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        autoencoder: str | os.PathLike[str] | None = None,
        flow_map: str | os.PathLike[str] | None = None,
    ) -> "LatentFlow":
        """Load a model, as float32 on the CPU.

        Args:
            model: a folder that `save_pretrained` or the stages `train` and `sample` made, or the id `owner/name` of a
                model on the Hugging Face hub. None: the bundled one, trained on MNIST.
            revision: branch, tag or commit of a hub id.
            autoencoder: another folder for it. By default `autoencoder/` within the model's; without one, all that
                needs images raises.
            flow_map: another folder for it. By default `flow_map/` within the model's, if there is one.

        Raises `ConfigError` where a file is missing, damaged or of another model, or where the hub can't be reached.

        Example:
            >>> LatentFlow.from_pretrained().save_pretrained("digits", torch.float16)
            >>> LatentFlow.from_pretrained("digits")
            LatentFlow(images 1×28×28, latents 6×4×4, 10 classes)
        """
        folder = BUNDLED if model is None else Path(model)
        if not folder.is_dir():
            folder = _from_hub(model, revision)
        flow = _read_flow(folder / FLOW)
        transformer = load_model(folder, Transformer)
        sampler = Sampler()
        if (folder / SAMPLING).exists():
            sampler = _read_sampler(folder / SAMPLING)
        elif transformer.label is None:
            sampler = sampler._replace(guidance_scale=1.0)
        place = Path(autoencoder) if autoencoder is not None else folder / AUTOENCODER
        coder = None
        if autoencoder is not None or place.is_dir():
            from lfm.nets.autoencoder import ImageAutoencoder, load

            coder_digest = digest(place, AUTOENCODER_FILES)
            if coder_digest != flow["autoencoder_sha256"]:
                raise ConfigError(
                    f"{folder} was trained with another autoencoder ({flow['autoencoder_sha256'][:12]}…) than {place} "
                    f"({coder_digest[:12]}…); name the one it was trained with"
                )
            channels, height, width = flow["image_channels"], flow["image_height"], flow["image_width"]
            coder = ImageAutoencoder(load(place), channels, (height, width)).to(torch.device("cpu"))
        jumps = Path(flow_map) if flow_map is not None else folder / FLOW_MAP
        few = load_model(jumps, FlowMap) if flow_map is not None or jumps.is_dir() else None
        weak = load_model(folder / WEAK, Transformer) if (folder / WEAK).is_dir() else None
        return cls(transformer, flow, sampler, coder, few, weak)

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Write the model as one folder; `dtype` is what weights are stored as. Existing files of it are replaced."""
        folder, config = Path(folder), dict(self.config)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:  # a model is never half of another one
            part = Path(name)
            save_model(part, self.transformer, self.transformer.config, dtype)
            if self._autoencoder is not None:
                from lfm.nets.autoencoder import save

                save(part / AUTOENCODER, self._autoencoder.model, dtype)
                config["autoencoder_sha256"] = digest(part / AUTOENCODER, AUTOENCODER_FILES)
                (folder / AUTOENCODER).mkdir(exist_ok=True)
            for name, net in ((FLOW_MAP, self.flow_map), (WEAK, self.weak)):
                if net is not None:
                    (folder / name).mkdir(exist_ok=True)
                    save_model(part / name, net, net.config, dtype)
                else:
                    shutil.rmtree(folder / name, ignore_errors=True)  # of another model
            for name, content in ((FLOW, config), (SAMPLING, self.sampler.as_json())):
                (part / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            for file in [path for path in part.rglob("*") if path.is_file()]:
                file.replace(folder / file.relative_to(part))

    def to(self, device: str | torch.device) -> "LatentFlow":
        """Move the model; returns itself."""
        for net in self._networks:
            net.to(device)
        if self._autoencoder is not None:
            self._autoencoder.to(torch.device(device))
        return self

    def __repr__(self) -> str:
        images, latents = ("×".join(map(str, shape)) for shape in (self.image_shape, self.latent_shape))
        return f"LatentFlow(images {images}, latents {latents}, {self.classes or 'no'} classes)"

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return next(self.transformer.parameters()).device

    @property
    def autoencoder(self) -> "ImageAutoencoder":
        """Raises `ConfigError` where the model was loaded without one."""
        if self._autoencoder is None:
            raise ConfigError(
                "this model has no autoencoder, so it knows latents alone; load it with from_pretrained(folder, autoencoder=…)"
            )
        return self._autoencoder

    # --- noise → images ------------------------------------------------------------------------------------------

    def stream(
        self,
        labels: Labels = None,
        n: int = 1,
        *,
        seed: int | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
        sampler: Sampler | None = None,
        steps: int | None = None,
        solver: str | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        autoguidance_scale: float | None = None,
        autoguidance_interval: tuple[float, float] | None = None,
        return_path: bool | Sequence[float] = False,
        output_type: Output = "pil",
        batch_size: int = 64,
        precision: str = "float32",
        progress: Callable[[int, int], object] | None = None,
    ) -> Iterator[Samples]:
        """Draw images: `sample` returns all of them, `stream` yields them a batch at a time, for more than memory holds.

        Image i of a seed follows from (seed, i, label) and the sampler alone: its bytes are the same however many are drawn
        with it, since every batch is integrated whole, a short one filled up. Another `batch_size`, device or number of
        threads changes rounding, in float32 by at most a grey level; `dopri5` chooses its steps by the whole batch, so there
        images agree within its tolerances.

        Args:
            labels: a class or several; None draws them uniformly, from the seed.
            n: how many of each label, label by label; without labels, how many.
            seed: None draws one; the result names it.
            rows: which images of the seed, one number an image; by default 0, 1, 2 …
            sampler: all values at once; by default `self.sampler`, the model's own.
            steps, solver, guidance_scale, guidance_interval, autoguidance_scale, autoguidance_interval: single values in place
                of the sampler's; scale 1 is no guidance of its kind (`lfm.sampling.guidance`). The solver `flow_map` jumps with
                the flow map in 1, 2 or 4 steps, and takes no guidance, which it has learnt. It is also what `steps=1`, 2 or 4
                alone means where the model has one; name a solver, or guidance, to integrate the flow.
            return_path: True for the images at every time of the grid, or times in [0, 1], of which the nearest in the grid
                are taken.
            output_type: `pil`, `np` or `pt` (uint8, (n, C, H, W)), or `latent` (normalised, on the device).
            batch_size: rows that are integrated together; a lower one is faster for a few images.
            precision: `float32`, `bf16`, or `auto`, the faster one here; `dopri5` works in float32 always.
            progress: called with (images drawn, images in all) after each batch.

        Returns:
            `Samples`, of all images or of a batch.

        Raises `ConfigError` that names the argument which can't be used, `stream` too before its first batch.

        Example:
            >>> drawn = model.sample([3, 1, 4], n=2, seed=0, batch_size=6)
            >>> len(drawn.images), drawn.images[0].size, drawn.labels.tolist()
            (6, (28, 28), [3, 3, 1, 1, 4, 4])
        """
        guidance: dict[str, Any] = {"guidance_scale": guidance_scale, "guidance_interval": guidance_interval}
        guidance |= {"autoguidance_scale": autoguidance_scale, "autoguidance_interval": autoguidance_interval}
        changes = {k: v for k, v in ({"steps": steps, "solver": solver} | guidance).items() if v is not None}
        if solver == "flow_map" and steps is None and self.flow_map and (sampler or self.sampler).solver != solver:
            changes["steps"] = self.flow_map.evaluations
        if [*changes] == ["steps"] and sampler is None and self.flow_map and steps in self.flow_map.steps:
            changes["solver"] = "flow_map"
        s = (sampler or self.sampler)._replace(**changes).check()
        seed = secrets.randbits(32) if seed is None else _integer("seed", seed, 0, 2**63 - 1)
        _integer("batch_size", batch_size, 1, 10**6)
        _check_output(output_type, precision)
        if output_type != "latent":
            _ = self.autoencoder
        if s.solver == "flow_map":
            self._check_jumps(s, [name for name in guidance if name in changes])
        self._check_guidance(s.guidance_scale, s.autoguidance_scale)
        y, numbers = self._asked_for(labels, n, seed, rows)
        grid = time_grid(s.steps, s.time_shift, self.end)
        path_at = _places(return_path, grid, self.end)
        return self._stream(s, y, numbers, seed, grid, path_at, output_type, batch_size, precision, progress)

    sample = _joining(stream)

    def _check_jumps(self, s: Sampler, guidance: list[str]) -> None:
        """Raises `ConfigError` where the flow map can't do what is asked for."""
        if self.flow_map is None:
            raise ConfigError("solver is 'flow_map', and this model has none; choose another, such as midpoint")
        if s.steps not in self.flow_map.steps:
            accepted = ", ".join(map(str, self.flow_map.steps))
            raise ConfigError(f"steps is {s.steps}; with solver flow_map accepted: {accepted}")
        if refused := [*(["time_shift"] if s.time_shift != 1 else []), *guidance]:
            name = refused[0]
            raise ConfigError(
                f"{name} is {getattr(s, name)}; the solver flow_map takes none: leave it out, or name another solver"
            )

    def _asked_for(
        self, labels: Labels, n: int, seed: int, rows: Sequence[int] | np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label and row number of every image."""
        _integer("n", n, 1, 2**31)
        y = None if labels is None else np.repeat(self._labels(labels), n)
        numbers = _rows(rows, n if y is None else len(y))
        if y is None:
            drawn = [random.generator(seed, "label", int(row)).integers(max(1, self.classes)) for row in numbers]
            y = np.array(drawn, np.int64)
        return y, numbers

    @torch.inference_mode()
    def _stream(
        self, s: Sampler, labels: np.ndarray, rows: np.ndarray, seed: int, grid: Tensor, path_at: list[int],
        output_type: Output, batch_size: int, precision: str, progress: Callable[[int, int], object] | None,
    ) -> Iterator[Samples]:  # fmt: skip
        total, at = len(rows), sorted({*path_at, len(grid) - 1})
        times = [float(grid[i]) for i in path_at] or None
        for start in range(0, total, batch_size):
            count = min(batch_size, total - start)
            full = np.arange(start, start + batch_size) % total  # the last batch starts again to be full
            before = self._passes
            states = self._integrate(s, rows[full], labels[full], seed, grid, at, precision)
            passes = (self._passes - before) / batch_size
            pictures = {
                i: self._decoded(x, output_type, batch_size, precision, count) for i, x in zip(at, states, strict=True)
            }
            if progress is not None:
                progress(start + count, total)
            path = [pictures[i] for i in path_at] if times else None
            yield Samples(pictures[at[-1]], labels[start : start + count], seed, passes, path, times)

    def _integrate(
        self, s: Sampler, rows: np.ndarray, labels: np.ndarray, seed: int, grid: Tensor, at: list[int], precision: str
    ) -> Tensor:
        """Noise of these rows → normalised latents (T, B, c, h, w) at places of the grid."""

        def noise(stream: str) -> Tensor:
            return random.moved(random.normal_rows(seed, stream, rows.tolist(), self.latent_shape), self.device)

        if s.solver == "flow_map" and self.flow_map is not None:
            y = torch.from_numpy(labels.astype(np.int64)).to(self.device)
            with precision_context(precision, self.device):
                return _finite(self.flow_map.follow(noise("sample"), y, grid)[at], "samples")
        velocity = self._guided(labels, s.by_labels, s.by_weak)
        # An adaptive solver takes bf16's rounding for an error that smaller steps would mend.
        with precision_context("float32" if s.solver in ADAPTIVE else precision, self.device):
            states = s(velocity, self.path, noise("sample"), grid, lambda step: noise(f"noise of step {step}"), at).x
        return _finite(states, "samples")

    # --- images ↔ latents ----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, images: Images, batch_size: int = 64, precision: str = "float32") -> Tensor:
        """Images → the mean of their posteriors, normalised: (n, c, h, w) on the device.

        Args:
            images: PIL images, or 8-bit pixels (H, W), (n, H, W) or (n, C, H, W), of the size the model was trained on.
            batch_size, precision: as for `sample`.

        Example:
            >>> x = model.encode(np.zeros((2, 28, 28), np.uint8))
            >>> tuple(x.shape), tuple(model.decode(x, "np").shape)
            ((2, 6, 4, 4), (2, 1, 28, 28))
        """
        _integer("batch_size", batch_size, 1, 10**6)
        _check_output("latent", precision)
        coder, pixels = self.autoencoder, self._pixels(images).to(self.device)
        with precision_context(precision, self.device):
            means = [coder.moments(part)[0] for part in pixels.split(batch_size)]
        return _finite(self.scale.normalise(torch.cat(means)), "latents")

    @torch.inference_mode()
    def decode(
        self, latents: Tensor, output_type: Output = "pil", batch_size: int = 64, precision: str = "float32"
    ) -> Any:
        """Normalised latents (n, c, h, w) → images, as `sample` returns them."""
        _integer("batch_size", batch_size, 1, 10**6)
        _check_output(output_type, precision)
        latents, parts = self._checked(latents), []
        for start in range(0, len(latents), batch_size):
            full = torch.arange(start, start + batch_size) % len(latents)
            count = min(batch_size, len(latents) - start)
            parts.append(self._decoded(latents[full], output_type, batch_size, precision, count))
        return _concatenated(parts)

    def _decoded(self, latents: Tensor, output_type: Output, batch_size: int, precision: str, count: int) -> Any:
        """A batch of latents as pictures, the first `count` of them."""
        if output_type == "latent":
            return _finite(latents[:count], "latents")
        with precision_context(precision, self.device):
            decoded = self.autoencoder.model.decode(self.scale.restore(latents.to(self.device))).sample
            pixels = self.autoencoder.images(_finite(decoded, "images"))[:count]
        if output_type == "pt":
            return pixels
        array = pixels.cpu().numpy()
        return array if output_type == "np" else [_to_pil(image) for image in array]

    def _pixels(self, images: Images) -> Tensor:
        """Images of any accepted kind → (n, C, H, W) uint8."""
        channels, height, width = self.image_shape
        if isinstance(images, Image.Image):
            images = [images]
        if isinstance(images, list | tuple) and images and all(isinstance(image, Image.Image) for image in images):
            modes = [np.asarray(image.convert("L" if channels == 1 else "RGB")) for image in images]
            if len({array.shape for array in modes}) > 1:
                raise ConfigError(f"images have several sizes; resize them to {width}×{height}")
            images = np.stack(modes)
            images = images[:, None] if channels == 1 else np.moveaxis(images, -1, 1)
        array = images if isinstance(images, Tensor) else np.ascontiguousarray(images)
        if array.dtype not in (torch.uint8, np.uint8):
            raise ConfigError(f"images are {array.dtype}; accepted are PIL images and 8-bit pixels (uint8)")
        pixels = array if isinstance(array, Tensor) else torch.from_numpy(array)
        if channels == 1 and pixels.dim() in (2, 3):
            pixels = pixels.reshape(-1, 1, *pixels.shape[-2:])
        if pixels.dim() == 3:
            pixels = pixels[None]
        if tuple(pixels.shape[1:]) != self.image_shape or not len(pixels):
            raise ConfigError(f"images are {tuple(pixels.shape)}; this model takes n × {self.image_shape}")
        return pixels

    def _latents(self, x: Images) -> Tensor:
        """Normalised latents (n, c, h, w), n ≥ 1: a floating-point tensor as it is, images encoded."""
        return self._checked(x) if isinstance(x, Tensor) and x.is_floating_point() else self.encode(x)

    def _checked(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ConfigError(f"latents are {type(x).__name__}; accepted: a floating-point tensor")
        if tuple(x.shape[1:]) != self.latent_shape or not len(x):
            raise ConfigError(f"latents are {tuple(x.shape)}; this model takes n × {self.latent_shape}")
        return x.to(self.device)

    # --- through the noise ---------------------------------------------------------------------------------------

    def velocity(self, t: float | Tensor, x: Tensor, labels: Labels = None, guidance_scale: float = 1.0) -> Tensor:
        """dx/dt at time t (0: noise, 1: data), a scalar, and normalised latents x: (n, c, h, w) each.

        Args:
            labels: one each, or one for all; None: without labels.
            guidance_scale: v(∅) + scale · (v(y) − v(∅)), as in `lfm.sampling.guidance`.
        """
        x = self._checked(x)
        y = self._labels_of(labels, len(x))
        self._check_guidance(guidance_scale)
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        return self._guided(y, Guidance(guidance_scale))(time, x)

    @torch.inference_mode()
    def invert(self, x: Images, labels: Labels = None, steps: int = INVERSION_STEPS) -> Tensor:
        """Images, or latents, → the noise (n, c, h, w) that they would be drawn from, without guidance, in float32.

        Args:
            x: images as `encode` takes them, or normalised latents (n, c, h, w) as floating-point tensor.
            labels: one each, or one for all; None: without labels.
            steps: of the fourth-order solver.

        Example:
            >>> x = model.sample(3, n=2, seed=0, output_type="latent", batch_size=2).images
            >>> noise = model.invert(x, 3)
            >>> float((model.generate(noise, 3, output_type="latent") - x).abs().max()) < 1e-3
            True
        """
        latents = self._latents(x)
        velocity = self._guided(self._labels_of(labels, len(latents)))
        return _finite(invert(velocity, latents, self._grid(steps)), "noises")

    @torch.inference_mode()
    def generate(
        self,
        noise: Tensor,
        labels: Labels = None,
        *,
        guidance_scale: float = 1.0,
        steps: int = INVERSION_STEPS,
        output_type: Output = "pil",
    ) -> Any:
        """Noise (n, c, h, w), such as `invert` returns, → images: its way back, by the same solver."""
        noise = self._checked(noise)
        self._check_guidance(guidance_scale)
        _check_output(output_type)
        velocity = self._guided(self._labels_of(labels, len(noise)), Guidance(guidance_scale))
        return self.decode(generate(velocity, noise, self._grid(steps)), output_type)

    @torch.inference_mode()
    def interpolate(
        self, a: Images, b: Images, n: int = 8, labels: Labels = None, *, steps: int = INVERSION_STEPS,
        output_type: Output = "pil",
    ) -> Any:  # fmt: skip
        """From each image of `a` to that of `b` through the noise between theirs.

        Args:
            a, b: as many images, or latents, each.
            n: pictures on the way, both ends included.

        Returns:
            A list of n, each with the pictures of all pairs, as `sample` returns them.

        Example:
            >>> ends = model.sample([3, 5], seed=0, output_type="latent", batch_size=2).images
            >>> [len(step) for step in model.interpolate(ends[:1], ends[1:], n=4)]
            [1, 1, 1, 1]
        """
        _integer("n", n, 2, 10_000)
        _check_output(output_type)
        first, last = self._latents(a), self._latents(b)
        if len(first) != len(last):
            raise ConfigError(f"{len(first)} images to start from and {len(last)} to end at; give as many of both")
        y, grid = self._labels_of(labels, len(first)), self._grid(steps)
        start, end = invert(self._guided(np.tile(y, 2)), torch.cat([first, last]), grid).chunk(2)
        x0 = torch.cat([slerp(start, end, i / (n - 1)) for i in range(n)])
        latents = generate(self._guided(np.tile(y, n)), x0, grid)
        return [self.decode(part, output_type) for part in latents.chunk(n)]

    @torch.inference_mode()
    def transfer(
        self, x: Images, to: Labels, labels: Labels = None, *, guidance_scale: float | None = None,
        steps: int = INVERSION_STEPS, output_type: Output = "pil",
    ) -> Any:  # fmt: skip
        """The same hand as other digits: the noise of each image, followed with each label of `to`.

        Args:
            x: images or latents.
            to: target labels.
            labels: the digits that the images show; None: inverted without label.
            guidance_scale: by default the sampler's, everywhere on the way.

        Returns:
            A list of as many as `to`, each with the pictures of all images, as `sample` returns them.

        Example:
            >>> three = model.sample(3, seed=0, batch_size=1).images
            >>> [len(digit) for digit in model.transfer(three, to=[0, 8], labels=3)]
            [1, 1]
        """
        targets = self._labels(to)
        scale = self.sampler.guidance_scale if guidance_scale is None else guidance_scale
        self._check_guidance(scale)
        _check_output(output_type)
        x0 = self.invert(x, labels, steps)
        velocity = self._guided(np.repeat(targets, len(x0)), Guidance(scale))
        latents = generate(velocity, x0.repeat(len(targets), 1, 1, 1), self._grid(steps))
        return [self.decode(part, output_type) for part in latents.chunk(len(targets))]

    def log_prob(
        self,
        x: Images,
        labels: Labels = None,
        *,
        divergence: Literal["hutchinson", "exact"] = "hutchinson",
        probes: int = 4,
        steps: int = 20,
        solver: str = "rk4",
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> LogProb:
        """log p(x | label) of latents under the flow (Chen et al. 2018, eq. 8), of images' posterior means: a density of
        normalised latents, not of pixels.

        Args:
            x: images or latents.
            labels: one each, or one for all; None: without labels.
            divergence: `exact` takes a derivative a dimension, `hutchinson` one a probe.
            probes: independent estimates of each; two or more give a standard error.
            steps, solver: of a fixed-step solver, from data to noise.
            seed, rows: the probes of image i follow from (seed, row i); rows are 0, 1, 2 … by default.

        Example:
            >>> x = model.sample(3, n=2, seed=0, output_type="latent", batch_size=2).images
            >>> estimate = model.log_prob(x, 3, probes=2)
            >>> estimate.nats.shape, estimate.standard_error.shape, estimate.dimensions
            ((2,), (2,), 96)
        """
        _one_of("divergence", divergence, ("hutchinson", "exact"))
        _one_of("solver", solver, tuple(FIXED_STEP))
        _integer("probes", probes, 1, 10_000)
        _integer("seed", seed, 0, 2**63 - 1)
        latents = self._latents(x).clone()  # no inference tensor: derivatives are taken
        velocity, grid = self._guided(self._labels_of(labels, len(latents))), self._grid(steps)
        numbers = _rows(rows, len(latents)).tolist()
        if divergence == "exact":
            nats = log_likelihood(velocity, latents, grid, solver, exact_divergence).cpu().numpy()
            return LogProb(_finite(nats, "likelihoods"), np.zeros_like(nats), math.prod(self.latent_shape))
        estimates = []
        for i in range(probes):
            stream = "probe" if i == 0 else f"probe {i}"
            probe = random.normal_rows(seed, stream, numbers, self.latent_shape).sign().to(self.device)
            estimate = log_likelihood(velocity, latents, grid, solver, hutchinson_divergence(probe))
            estimates.append(estimate.cpu().numpy())
        spread = np.std(estimates, axis=0, ddof=1) if probes > 1 else np.full_like(estimates[0], np.nan)
        mean = _finite(estimates[0] if probes == 1 else np.mean(estimates, axis=0), "likelihoods")
        return LogProb(mean, spread / math.sqrt(probes), math.prod(self.latent_shape))

    def _guided(
        self, labels: np.ndarray, by_labels: Guidance = NONE, by_weak: Guidance = NONE
    ) -> Callable[[Tensor, Tensor], Tensor]:
        y = torch.from_numpy(labels.astype(np.int64)).to(self.device)
        return guided(self._velocity, y, self.transformer.null_label, by_labels, self._weak_velocity, by_weak)

    def _grid(self, steps: int) -> Tensor:
        return time_grid(_integer("steps", steps, 1, MOST_STEPS), end=self.end)

    def _labels(self, labels: Labels) -> np.ndarray:
        """Labels (n,) int64, each a class of this model."""
        y = np.atleast_1d(labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels))
        if not self.classes:
            raise ConfigError(f"labels are {_short(y)}; this model knows none: leave them out")
        if y.ndim != 1 or not len(y) or y.dtype.kind not in "iu":
            raise ConfigError(f"labels are {_short(y)}; accepted are whole numbers from 0 to {self.classes - 1}")
        if y.min() < 0 or y.max() >= self.classes:
            wrong = y[(y < 0) | (y >= self.classes)][0]
            raise ConfigError(f"labels: {wrong} is no class of this model; accepted: 0 to {self.classes - 1}")
        return y.astype(np.int64)

    def _labels_of(self, labels: Labels, n: int) -> np.ndarray:
        """A label for each of n rows; the null label where there is none."""
        if labels is None:
            return np.full(n, self.transformer.null_label)
        y = self._labels(labels)
        if len(y) not in (1, n):
            raise ConfigError(f"labels: {len(y)} of them for {n} images; give one each, or one for all")
        return np.broadcast_to(y, (n,)).copy()

    def _check_guidance(self, scale: float, away: float = 1.0) -> None:
        self.sampler._replace(guidance_scale=scale).check()
        if not self.classes and scale != 1:
            raise ConfigError(f"guidance_scale is {scale:g}; this model knows no labels: set it to 1")
        if self.weak is None and away != 1:
            raise ConfigError(f"autoguidance_scale is {away:g}; this model has no weak one beside it: set it to 1")


def _what_it_takes(net: Transformer) -> tuple[int, int, int, bool]:
    """Latents and labels."""
    return net.channels, net.size, net.null_label, net.label is None


A = TypeVar("A", Tensor, np.ndarray)


def _finite(values: A, what: str) -> A:
    """The values; raises `ConfigError` where one is NaN or infinite."""
    if not bool(torch.as_tensor(values).isfinite().all()):
        raise ConfigError(f"{what} of this model are not finite; fetch or train it again, or use more steps")
    return values


def _to_pil(image: np.ndarray) -> Image.Image:
    """(C, H, W) uint8 → an image in mode L or RGB."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(np.moveaxis(image, 0, -1)))


def _joined(parts: list[Samples]) -> Samples:
    first = parts[0]
    if len(parts) == 1:
        return first
    path = [_concatenated([p.path[i] for p in parts if p.path]) for i in range(len(first.path or []))] or None
    return Samples(
        _concatenated([p.images for p in parts]), np.concatenate([p.labels for p in parts]), first.seed,
        sum(p.nfe for p in parts) / len(parts), path, first.times,
    )  # fmt: skip


def _concatenated(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [image for part in parts for image in part]


def _places(return_path: bool | Sequence[float], grid: Tensor, end: float) -> list[int]:
    """Places of the grid at which images are wanted on the way."""
    if isinstance(return_path, bool):
        return list(range(len(grid))) if return_path else []
    times, wanted = grid.numpy(), np.asarray(return_path)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iuf" or not ((wanted >= 0) & (wanted <= 1)).all():
        raise ConfigError(f"return_path is {return_path!r}; accepted: True, False or times from 0 to 1")
    return sorted({int(np.abs(times - t * end).argmin()) for t in wanted})


def _integer(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; accepted are whole numbers from {least} to {most:,}")
    return int(value)


def _one_of(name: str, value: object, names: Sequence[str]) -> None:
    if value not in names:
        raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(names)}")


def _check_output(output_type: object, precision: object = "float32") -> None:
    _one_of("output_type", output_type, ("pil", "np", "pt", "latent"))
    _one_of("precision", precision, PRECISIONS)


def _rows(rows: Sequence[int] | np.ndarray | None, n: int) -> np.ndarray:
    """Row numbers (n,) int64, by default 0 … n − 1."""
    numbers = np.arange(n) if rows is None else np.asarray(rows)
    if numbers.shape != (n,) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise ConfigError(f"rows are {_short(numbers)}; accepted: {n} whole numbers from 0, one an image")
    return numbers.astype(np.int64)


def _short(values: np.ndarray) -> str:
    return repr(values.tolist()[:5]) if values.size <= 5 else f"{values.tolist()[:5]!r} …"


def _from_hub(name: str | os.PathLike[str] | None, revision: str | None) -> Path:
    """The folder of a model on the Hugging Face hub, downloaded or from the cache."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise ConfigError(f"{name}: no such folder; name one that holds {FLOW}, or a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's client raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name}: neither a folder here nor to be had from the hub ({type(error).__name__}: {reason})"
        ) from error


def _read_flow(path: Path) -> dict[str, Any]:
    flow = read_config(path)
    numbers = (int, float)
    scale = (flow.get("scale_mean"), flow.get("scale_std"))
    fits: dict[str, Callable[[Any], bool]] = {
        "path": lambda v: v in tuple(PATHS),
        "sigma_min": lambda v: isinstance(v, numbers) and 0 <= v < 1,
        "prediction": lambda v: v in ("velocity", "data"),
        "scale_mean": lambda v: isinstance(v, list) and all(isinstance(x, numbers) and math.isfinite(x) for x in v),
        "scale_std": lambda v: isinstance(v, list) and all(isinstance(x, numbers) and 0 < x < math.inf for x in v)
        and isinstance(scale[0], list) and len(v) == len(scale[0]),
        **dict.fromkeys(
            ("image_channels", "image_height", "image_width"), lambda v: isinstance(v, int) and 1 <= v <= 10**6
        ),
        "autoencoder_sha256": lambda v: isinstance(v, str),
    }  # fmt: skip
    for key, fit in fits.items():
        if key not in flow or not fit(flow[key]):
            value = f"is {flow[key]!r}"[:120] if key in flow else "is missing"
            raise ConfigError(f"{path}: '{key}' {value}; fetch or make the model again")
    return flow


def _read_sampler(path: Path) -> Sampler:
    values = read_config(path)
    unknown = set(values) - set(Sampler._fields)
    try:
        if unknown:
            raise ConfigError(f"'{min(unknown)}' is no value of a sampler")
        return Sampler(**values).check()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; fetch or make the model again") from error

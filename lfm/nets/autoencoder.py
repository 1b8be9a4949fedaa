"""Images ↔ latents through a diffusers autoencoder: the one module that imports diffusers.

Any `AutoencoderKL` or `AutoencoderTiny` will do. What its input looks like follows from `in_channels` alone: c·r², where
c is 1 (grey) or 3 (colour) and r is 1, 2 or 4, the pixels folded into channels by pixel-unshuffle. Grey images go
through a colour autoencoder as three equal channels and come back through the luma weights of ITU-R BT.601.
"""

import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging
from safetensors.torch import save as save_tensors
from torch import Tensor

from lfm.errors import ConfigError
from lfm.nets.latents import LatentScale
from lfm.nets.weights import check_counts, check_finite

logging.set_verbosity_error()

CONFIG, WEIGHTS = FILES = "config.json", "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # where it stands, diffusers reads the files that it names instead, even pickles
FOLDS = {1: (1, 1), 4: (1, 2), 16: (1, 4), 3: (3, 1), 12: (3, 2), 48: (3, 4)}  # in_channels → (colours, r)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class ImageAutoencoder:
    """8-bit images ↔ latents.

    Args:
        model: the diffusers autoencoder.
        channels: of the images, 1 or 3.
        size: height and width of the images, in pixels.
    """

    def __init__(self, model: AutoencoderKL | AutoencoderTiny, channels: int, size: tuple[int, int]) -> None:
        inputs = model.config.in_channels
        if inputs not in FOLDS:
            raise ConfigError(
                f"autoencoder: in_channels is {inputs}; accepted are {sorted(FOLDS)} (colours × unshuffle²)"
            )
        if model.config.out_channels != inputs:
            raise ConfigError(
                f"autoencoder: in_channels is {inputs} and out_channels {model.config.out_channels}; they must be equal"
            )
        self.colours, self.fold = FOLDS[inputs]
        if channels == 3 and self.colours == 1:
            raise ConfigError(
                f"autoencoder: in_channels {inputs} is for grey images, but these have 3 channels; choose another source"
            )
        self.model, self.channels, self.size = model, channels, size
        self.factor = self.fold * _downsampling(model)
        padding = [-n % self.factor for n in size]
        self.pad = [part for p in reversed(padding) for part in (p // 2, p - p // 2)]  # left, right, top, bottom
        rows, columns = ((n + p) // self.factor for n, p in zip(size, padding, strict=True))
        if rows != columns:
            raise ConfigError(
                f"autoencoder: images of {size[0]}×{size[1]} become latents of {rows}×{columns}, and the flow takes square ones"
            )
        side = self.factor // self.fold * rows  # of what the model takes and gives
        self.taken, self.latent = (inputs, side, side), (model.config.latent_channels, rows, columns)

    def to(self, device: torch.device) -> "ImageAutoencoder":
        """Move the model, its convolutions in channels-last order."""
        self.model.to(device=device, memory_format=torch.channels_last)
        return self

    def pixels(self, images: Tensor) -> Tensor:
        """8-bit images (B, C, H, W) → what the model takes, float32 in [−1, 1], background where padded."""
        x = F.pad(images.float() / 127.5 - 1, self.pad, value=-1.0)
        x = x.expand(-1, self.colours, -1, -1) if self.channels == 1 else x
        return F.pixel_unshuffle(x, self.fold).contiguous(memory_format=torch.channels_last)

    def images(self, pixels: Tensor) -> Tensor:
        """What the model returns → 8-bit images (B, C, H, W)."""
        self._check("decodes latents to", pixels, self.taken)
        x = F.pixel_shuffle(pixels.float(), self.fold)
        if self.channels == 1 and self.colours == 3:
            x = (x * torch.tensor(LUMA, device=x.device)[:, None, None]).sum(1, keepdim=True)
        left, right, top, bottom = self.pad
        x = x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """8-bit images (B, C, H, W) → mean and standard deviation of the posterior, each (B, c, h, w) float32."""
        encoded = self.model.encode(self.pixels(images))
        if isinstance(self.model, AutoencoderTiny):  # no posterior
            mean, std = encoded.latents, torch.zeros_like(encoded.latents)
        else:
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        self._check("encodes images to", mean, self.latent)
        return mean.float(), std.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) → 8-bit images (B, C, H, W)."""
        return self.images(self.model.decode(latents).sample)

    def _check(self, does: str, shape_of: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(shape_of.shape[1:]) != expected:
            raise ConfigError(
                f"autoencoder: {does} {list(shape_of.shape[1:])}, where its configuration and images of "
                f"{[self.channels, *self.size]} give {list(expected)}; choose another source"
            )

    def scale(self) -> LatentScale:
        """The scale that the configuration names: flows see (z − shift_factor) · scaling_factor of latents z, with
        `latents_mean` and `latents_std` a channel where it has them.

        diffusers takes 0.18215, Stable Diffusion's, where the file of an `AutoencoderKL` has no scaling_factor at all.
        """
        config, ones = self.model.config, [1.0] * self.latent[0]
        shift, factor = config.get("shift_factor"), config.get("scaling_factor")
        try:
            means, stds = config.get("latents_mean") or [shift or 0.0] * len(ones), config.get("latents_std") or ones
            mean, std = torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64) / factor
            fits = mean.shape == std.shape == (len(ones),) and bool(
                (mean.isfinite() & std.isfinite() & (std > 0)).all()
            )
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ConfigError(
                f"autoencoder: its configuration has scaling_factor {factor!r} and shift_factor {shift!r}, which make no scale; "
                "set encode.scale: measured"
            )
        return LatentScale(mean.float(), std.float())


def _downsampling(model: AutoencoderKL | AutoencoderTiny) -> int:
    levels = (
        model.config.encoder_block_out_channels
        if isinstance(model, AutoencoderTiny)
        else model.config.block_out_channels
    )
    return int(2 ** (len(levels) - 1))


def build(unshuffle: int, colours: int, latent_channels: int, widths: list[int], layers: int) -> AutoencoderKL:
    """A small `AutoencoderKL` behind pixel-unshuffle, with random weights."""
    channels = colours * unshuffle**2
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=8,
        scaling_factor=1.0,  # latents are normalised per channel when they are read, see LatentScale
    )


def loss(model: AutoencoderKL, pixels: Tensor, noise: Tensor, kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The negative evidence bound per image dimension (Kingma & Welling 2014, eq. 10), with a touch of L1.

    Args:
        pixels: (B, C, H, W) as the model takes them.
        noise: standard normal, of the latents' shape (B, c, h, w).
        kl_weight: weight of the KL divergence, in nats per image dimension.

    Returns:
        The loss (mean squared error + 0.1 · mean absolute error + weighted KL), the squared error, the KL in nats an image.
    """
    posterior = model.encode(pixels).latent_dist
    decoded = model.decode(posterior.mean + posterior.std * noise).sample
    error = decoded.float() - pixels
    squared, kl = error.square().mean(), posterior.kl().float().mean()
    return squared + 0.1 * error.abs().mean() + kl_weight * kl / math.prod(pixels.shape[1:]), squared, kl


def save(folder: Path, model: AutoencoderKL | AutoencoderTiny, dtype: torch.dtype = torch.float32) -> None:
    """Write diffusers' layout: configuration and safetensors, without the absolute path that diffusers may add."""
    stored = copy.deepcopy(model).to(dtype=dtype, memory_format=torch.contiguous_format)
    config = json.loads(stored.to_json_string())
    config.pop("_name_or_path", None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / WEIGHTS).write_bytes(save_tensors(stored.state_dict(), {"format": "pt"}))


def load(folder: Path) -> AutoencoderKL | AutoencoderTiny:
    """Read diffusers' layout (safetensors only), as float32, in evaluation mode, frozen."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder}: no {missing[0]}; an autoencoder's folder holds {CONFIG} and {WEIGHTS}")
    if (folder / INDEX).exists():
        raise ConfigError(f"{folder}: holds {INDEX}, weights in several files, which can't be checked; remove it")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name = str(config.get("_class_name"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{folder / CONFIG}: not a JSON object ({error}); fetch the file again") from error
    if name not in CLASSES:
        raise ConfigError(f"{folder / CONFIG}: _class_name is {name}; accepted are {' and '.join(CLASSES)}")
    try:
        check_counts(config, folder / WEIGHTS)
        model, report = CLASSES[name].from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=torch.float32, output_loading_info=True
        )
        strangers = [*report["missing_keys"], *report["unexpected_keys"]]  # diffusers would draw what is missing
        if strangers:
            raise ValueError(f"{len(strangers)} weights are missing or too many, such as {strangers[0]}")
        check_finite(model)
    except Exception as error:  # diffusers raises anything for a damaged configuration
        for file in (folder / CONFIG, folder / WEIGHTS):
            file.read_bytes()  # raises what diffusers may have put into words of its own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise ConfigError(f"{folder}: the weights can't be read ({reason}); fetch or make them again") from error
    return model.eval().requires_grad_(False)

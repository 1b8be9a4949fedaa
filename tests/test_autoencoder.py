"""Any diffusers autoencoder: how images become what it takes, the scale that it names, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from lfm.errors import ConfigError
from lfm.nets import autoencoder
from lfm.nets.autoencoder import ImageAutoencoder
from lfm.nets.weights import digest
from pipeline.artifacts import hdf5, latents, samples
from pipeline.errors import UserError
from pipeline.params import Params
from stages import autoencoder as stage
from stages import distill, encode, sample, train
from tests.conftest import context, parameters, write_noise

CUT = {
    "train__steps": 2, "train__batch_size": 4, "train__snapshots": [1], "train__warmup_steps": 0, "sample__batch_size": 4,
    "sample__steps": 2, "sample__inversion_steps": 1, "encode__batch_size": 4, "runtime__progress": False,
}  # fmt: skip


def kl(channels: int = 3, levels: int = 4, **config: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [8] * levels,
    }
    shape = {"in_channels": channels, "out_channels": channels, "norm_num_groups": 4, "latent_channels": 4}
    return AutoencoderKL(**shape | blocks | config).eval()


def taesd(encoder: int = 4, decoder: int = 4, **config: Any) -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=[8] * encoder, num_encoder_blocks=[1] * encoder,
        decoder_block_out_channels=[8] * decoder, num_decoder_blocks=[1] * decoder, **config,
    ).eval()  # fmt: skip


# --- images ------------------------------------------------------------------------------------------------------------


def test_grey_images_become_three_equal_channels_padded_with_background() -> None:
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([0, 255])
    x = ImageAutoencoder(kl(), 1, (28, 28)).pixels(images)
    expected = torch.full((2, 3, 32, 32), -1.0)
    expected[:, :, 2:30, 2:30] = images / 127.5 - 1
    assert torch.equal(x, expected)
    assert (x[0, 0, 2, 2], x[0, 0, 2, 3]) == (-1, 1)


def test_colours_become_grey_by_their_luma_and_the_padding_is_cut_off() -> None:
    x = torch.full((1, 3, 32, 32), 7.0)  # the padding: nothing of it may be left
    x[:, :, 2:30, 2:30] = -1
    x[0, 0, 2, 2] = 1  # red, green, blue
    x[0, 1, 2, 3] = 1
    x[0, 2, 2, 4] = 1
    x[0, :, 29, 29] = 9  # brighter than white
    x[0, :, 28, 28] = -9
    image = ImageAutoencoder(kl(), 1, (28, 28)).images(x)
    expected = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    expected[0, 0, 0, :3] = torch.tensor([round(255 * luma) for luma in (0.299, 0.587, 0.114)])
    expected[0, 0, 27, 27] = 255
    assert torch.equal(image, expected)


# --- the scale ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "mean", "factor"),
    [
        (kl(levels=1), [0.0] * 4, [0.18215] * 4),
        (kl(levels=1, scaling_factor=0.3611, shift_factor=0.1159), [0.1159] * 4, [0.3611] * 4),
        (
            kl(levels=1, scaling_factor=0.5, latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 8]),
            [1.0, 2.0, 3.0, 4.0],
            [0.5, 0.25, 0.125, 0.0625],
        ),
        (taesd(1, 1), [0.0] * 4, [1.0] * 4),
    ],
    ids=["Stable Diffusion's", "with a shift", "a channel each", "AutoencoderTiny"],
)
def test_the_configuration_names_a_scale(
    model: AutoencoderKL | AutoencoderTiny, mean: list[float], factor: list[float]
) -> None:
    z = torch.randn(2, 4, 3, 3)
    scale = ImageAutoencoder(model, 1, (28, 28)).scale()
    seen = (z - torch.tensor(mean)[:, None, None]) * torch.tensor(factor)[:, None, None]
    torch.testing.assert_close(scale.normalise(z), seen, rtol=2.0**-22, atol=0)
    torch.testing.assert_close(scale.restore(seen), z, rtol=1e-5, atol=1e-6)


def test_a_configuration_without_a_scaling_factor_has_the_one_of_stable_diffusion(tmp_path: Path) -> None:
    autoencoder.save(tmp_path, kl(levels=1, scaling_factor=3.0))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["scaling_factor"]  # as stabilityai/sd-vae-ft-ema has it
    (tmp_path / "config.json").write_text(json.dumps(config))
    scale = ImageAutoencoder(autoencoder.load(tmp_path), 1, (28, 28)).scale()
    assert torch.equal(scale.std, torch.tensor([1 / 0.18215] * 4)) and torch.equal(scale.mean, torch.zeros(4))


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": None}, {"scaling_factor": 0}, {"scaling_factor": -1.0}, {"scaling_factor": "0.18215"},
        {"scaling_factor": float("nan")}, {"shift_factor": float("inf")}, {"shift_factor": "a"},
        {"latents_mean": [1.0, 2.0]}, {"latents_std": [1.0, 1.0, 1.0, 0.0]},
    ],
)  # fmt: skip
def test_a_scale_that_cannot_be_is_refused(config: dict[str, Any]) -> None:
    model = kl(levels=1)
    model.register_to_config(**config)
    with pytest.raises(ConfigError, match=r"scaling_factor .*shift_factor .*encode\.scale: measured"):
        ImageAutoencoder(model, 1, (28, 28)).scale()


# --- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (kl(2), (28, 28), "in_channels is 2"),
        (kl(3, out_channels=1), (28, 28), "in_channels is 3 and out_channels 1"),
        (kl(), (28, 56), "28×56 .*4×7"),
        (taesd(4, 3), (28, 28), r"decodes .*\[3, 16, 16\].*\[3, 32, 32\]"),
    ],
    ids=["in_channels", "out_channels", "square", "decoder"],
)
def test_an_autoencoder_that_does_not_fit_is_refused_by_its_shapes(
    tmp_path: Path, model: AutoencoderKL | AutoencoderTiny, size: tuple[int, int], message: str
) -> None:
    autoencoder.save(tmp_path, model)
    with pytest.raises(ConfigError, match=f"autoencoder: .*{message}"):
        stage.adopt("vae", tmp_path, torch.zeros(1, 1, *size, dtype=torch.uint8))


def test_an_encoder_of_another_downsampling_is_refused() -> None:
    model = kl()
    model.encoder.down_blocks[1].downsamplers = None
    with pytest.raises(ConfigError, match=r"encodes .*\[4, 8, 8\].*\[4, 4, 4\]"), torch.no_grad():
        ImageAutoencoder(model, 1, (28, 28)).moments(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))


@pytest.mark.parametrize(("levels", "side"), [(6, 1), (5, 2)], ids=["one latent", "padded by four"])
def test_a_deep_autoencoder_leaves_at_least_one_latent(levels: int, side: int) -> None:
    coder = ImageAutoencoder(kl(levels=levels), 1, (28, 28))
    images = torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        mean, _ = coder.moments(images)
        assert mean.shape == (1, 4, side, side) and coder.decode(mean).shape == images.shape


# --- through the stages ------------------------------------------------------------------------------------------------


def params(folder: Path) -> Params:
    pinned = {"autoencoder__source": str(folder), "autoencoder__revision": digest(folder, stage.FILES)}
    return parameters("tiny", **CUT, **pinned)


def test_an_autoencoder_without_a_posterior_goes_through_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    autoencoder.save(tmp_path / "taesd", taesd())
    write_noise(8, 4)
    p = params(tmp_path / "taesd")
    for module in (stage, encode, train, distill, sample):
        module.main(context(module.__name__.removeprefix("stages."), p))
    coder = ImageAutoencoder(autoencoder.load(Path("models/autoencoder")), 1, (28, 28))
    assert isinstance(coder.model, AutoencoderTiny)
    with (
        hdf5.reading(Path("data/latents.h5"), latents.FORMAT) as z,
        hdf5.reading(Path("data/samples.h5"), samples.FORMAT) as x,
    ):
        mean = z.read("train/mean")
        assert mean.shape == (8, 4, 4, 4) and not z.read("train/std").any(), "no posterior, so no noise"
        np.testing.assert_allclose(z.read("scale/std"), mean.std((0, 2, 3)), rtol=1e-4)
        again = coder.decode(torch.from_numpy(z.read("test/mean"))).int()
        assert x.shape("generated/images") == (4, 1, 28, 28)
        # The sample stage decodes what it normalised and restored, in bf16: a few grey levels of 255 at most.
        assert (again - torch.from_numpy(x.read("reconstructed/test")).int()).abs().float().mean() < 2


@pytest.mark.parametrize(("factor", "message"), [(0, "channel 0 .*has no scale"), (1e38, "train .*not finite")])
def test_constant_and_overflowing_latents_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = taesd(2, 2)
    model.encoder.layers[-1].weight.data *= factor
    autoencoder.save(tmp_path / "vae", model)
    write_noise(8, 4)
    p = params(tmp_path / "vae")
    stage.main(context("autoencoder", p))
    with pytest.raises(UserError, match=f"models/autoencoder: .*{message}"):
        encode.main(context("encode", p))
    assert not Path("data/latents.h5").exists()

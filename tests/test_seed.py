"""presets/seed from images to samples, its training cut to two steps, with random weights of Stable Diffusion's
architecture in place of the hub's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from lfm.nets.latents import LatentScale
from lfm.nets.transformer import Transformer
from lfm.nets.weights import digest, load_model
from pipeline.artifacts import hdf5, latents, samples
from stages import autoencoder, distill, encode, sample, train
from tests.conftest import context, parameters, write_noise

CUT = {
    "train__steps": 2, "train__batch_size": 4, "train__snapshots": [1], "train__compile": False, "encode__batch_size": 4,
    "distill__pairs": 4, "distill__teacher_steps": 4, "distill__steps": 2, "distill__batch_size": 2, "distill__compile": False,
    "distill__learning_rate": 1e-6,  # the flow is nearly zero after two steps, so its first loss is too
    "sample__batch_size": 4, "sample__trajectory_times": [0, 1], "sample__inversion_steps": 1, "runtime__progress": False,
}  # fmt: skip


def test_the_seeds_configuration_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("stages.train.SNAPSHOT_NOISES", "stages.train.SNAPSHOT_STEPS", "stages.sample.BETWEEN"):
        monkeypatch.setattr(name, 2)  # pictures, each of which costs as much as the training here
    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    ).save_pretrained("vae")  # fmt: skip
    write_noise(8, 4)
    revision = digest(Path("vae"), autoencoder.FILES)
    p = parameters("seed", **CUT, autoencoder__source=str(tmp_path / "vae"), autoencoder__revision=revision)
    for stage in (autoencoder, encode, train, distill, sample):
        stage.main(context(stage.__name__.removeprefix("stages."), p))

    with hdf5.reading(Path("data/latents.h5"), latents.FORMAT) as file:
        assert file.shape("train/mean") == (8, 4, 4, 4), "28×28 grey, padded to 32×32 in three channels"
        scale = LatentScale(*(torch.from_numpy(file.read(f"scale/{name}")) for name in ("mean", "std")))
        data = latents.read(file, "train", scale, torch.device("cpu"))
        # Exact but for the rounding of 1 / 0.18215 and of z / it.
        for seen, name in ((data.mean, "mean"), (data.std, "std")):
            z = torch.from_numpy(file.read(f"train/{name}"))
            torch.testing.assert_close(seen, 0.18215 * z, rtol=2.0**-22, atol=0)
    model = load_model(Path("models/flow"), Transformer)
    assert sum(w.numel() for w in model.parameters()) + model.positions.numel() == 129_537_808
    assert np.isfinite(json.loads(Path("models/flow/record.json").read_text(encoding="utf-8"))["validation_loss"])
    with hdf5.reading(Path("data/samples.h5"), samples.FORMAT) as file:
        assert file.shape("generated/images") == (4, 1, 28, 28)
        assert file.attribute("labelled") == 0
        nfe = file.attribute("nfe")
        assert isinstance(nfe, float) and nfe >= 14, "dopri5: two steps of six evaluations, two to begin"

"""presets/seed from images to samples, its training cut to two steps, with random weights of Stable Diffusion's
architecture in place of the hub's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from lfm.nets.latents import LatentScale
from lfm.nets.transformer import Transformer
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts import latents as store
from pipeline.artifacts.files import FLOW, LATENTS, LATENTS_FORMAT, SAMPLES, SAMPLES_FORMAT, sha256_of
from pipeline.params import Loader, Params, validate_params
from stages import autoencoder, encode, sample, train
from tests.conftest import ROOT, write_noise
from tools.workspace import apply, read_preset

CUT = {
    "train.steps": 2, "train.batch_size": 4, "train.snapshots": [1], "train.compile": False,
    "encode.batch_size": 4, "sample.batch_size": 4, "sample.trajectory_times": [0, 1], "sample.inversion_steps": 1,
}  # fmt: skip


def seed_params(source: Path, revision: str) -> Params:
    base = yaml.load((ROOT / "params.yaml").read_text(), Loader)
    changes = read_preset(ROOT / "presets/seed") | CUT
    changes |= {"autoencoder.source": str(source), "autoencoder.revision": revision}
    return validate_params(apply(base, changes, "presets/seed"), "presets/seed")


def test_the_seeds_configuration_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("stages.train.SNAPSHOT_NOISES", "stages.train.SNAPSHOT_STEPS", "lfm.uses.BETWEEN"):
        monkeypatch.setattr(name, 2)  # pictures, each of which costs as much as the training here
    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    ).save_pretrained("vae")  # fmt: skip
    write_noise(8, 4)
    p = seed_params(tmp_path / "vae", sha256_of(Path("vae"), autoencoder.FILES))
    for stage in (autoencoder, encode, train, sample):
        stage.main(p)

    with arrays.reading(LATENTS, LATENTS_FORMAT) as latents:
        assert latents.shape("train/mean") == (8, 4, 4, 4), "28×28 grey, padded to 32×32 in three channels"
        scale = LatentScale(*(torch.from_numpy(latents.read(f"scale/{name}")) for name in ("mean", "std")))
        data = store.read(latents, "train", scale, torch.device("cpu"))
        for seen, name in (
            (data.mean, "mean"),
            (data.std, "std"),
        ):  # exact but for the rounding of 1 / 0.18215 and of z / it
            z = torch.from_numpy(latents.read(f"train/{name}"))
            torch.testing.assert_close(seen, 0.18215 * z, rtol=2.0**-22, atol=0)
    model = load_model(FLOW, Transformer)
    assert sum(w.numel() for w in model.parameters()) + model.positions.numel() == 129_537_808
    assert np.isfinite(json.loads((FLOW / "record.json").read_text())["validation_loss"])
    with arrays.reading(SAMPLES, SAMPLES_FORMAT) as samples:
        assert samples.shape("generated/images") == (4, 1, 28, 28)
        assert samples.attribute("labelled") == 0
        evaluations = samples.attribute("nfe")
        assert isinstance(evaluations, float) and evaluations >= 14, (
            "dopri5: two steps of six evaluations, two to begin"
        )

"""What the stages leave: splits, latents, samples, and the weights that come with the package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lfm import random
from lfm.errors import ConfigError
from lfm.evaluation.metrics import frechet_distance
from lfm.flow.loss import cfm_loss
from lfm.flow.path import make_path
from lfm.flow.times import stratified
from lfm.model import LatentFlow
from lfm.nets import autoencoder
from lfm.nets.autoencoder import ImageAutoencoder
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.latents import LatentScale, draw
from lfm.nets.weights import load_model
from lfm.precision import resolve
from lfm.psnr import psnr
from pipeline.artifacts import hdf5, images, latents, samples
from pipeline.artifacts.hdf5 import SPLITS
from stages.autoencoder import reconstruct
from stages.classifier import accuracy
from tests.conftest import ROOT, STAGES, Digits, command

PRETRAINED = ROOT / "lfm/pretrained"


def test_splits_share_nothing_and_have_the_same_class_counts(tiny: Path) -> None:
    with hdf5.reading(tiny / "data/images.h5", images.FORMAT) as file:
        pixels, labels = ({s: file.read(f"{s}/{a}") for s in SPLITS} for a in ("images", "labels"))
    assert [len(pixels[s]) for s in SPLITS] == [6000, 1000, 1000]
    assert pixels["test"].shape[1:] == (1, 28, 28) and pixels["test"].dtype == np.uint8
    assert np.array_equal(np.bincount(labels["validation"]), np.bincount(labels["test"]))
    rows = {s: {image.tobytes() for image in pixels[s]} for s in SPLITS}
    assert not rows["train"] & rows["validation"] and not rows["train"] & rows["test"]


def test_latents_belong_to_their_images_and_are_normalised(tiny: Path) -> None:
    with (
        hdf5.reading(tiny / "data/images.h5", images.FORMAT) as x,
        hdf5.reading(tiny / "data/latents.h5", latents.FORMAT) as z,
    ):
        for split in SPLITS:
            assert np.array_equal(z.read(f"{split}/labels"), x.read(f"{split}/labels"))
        coder = ImageAutoencoder(autoencoder.load(tiny / "models/autoencoder"), 1, (28, 28))
        rows = random.permutation(0, "test", 0, 6000).numpy()[:64]
        with torch.no_grad():
            mean, std = coder.moments(torch.from_numpy(x.read("train/images")[rows]))
        stored_mean, stored_std = (torch.from_numpy(z.read(f"train/{name}")) for name in ("mean", "std"))
        # float32 either way (the preset says so); another batch size sums in another order.
        torch.testing.assert_close(mean, stored_mean[rows], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(std, stored_std[rows], rtol=1e-4, atol=1e-4)
        scale = LatentScale(*(torch.from_numpy(z.read(f"scale/{name}")) for name in ("mean", "std")))
    draws = [
        scale.normalise(draw(stored_mean, stored_std, random.normal(0, "draw", i, stored_mean.shape)))
        for i in range(10)
    ]
    drawn = torch.stack(draws).double()
    assert drawn.mean((0, 1, 3, 4)).abs().max() < 0.01
    assert (drawn.std((0, 1, 3, 4)) - 1).abs().max() < 0.01


def test_the_loss_of_a_zero_model_on_stored_latents(tiny: Path) -> None:
    """A model that says 0 has the loss E[x1²] + (1 − σ_min)²: shows normalisation, posterior draw and sign at once."""
    with hdf5.reading(tiny / "data/latents.h5", latents.FORMAT) as file:
        scale = LatentScale(*(torch.from_numpy(file.read(f"scale/{name}")) for name in ("mean", "std")))
        data = latents.read(file, "train", scale, torch.device("cpu"))
    x0, noise = (random.normal(0, name, 0, data.mean.shape) for name in ("x0", "posterior"))
    x1, t = draw(data.mean, data.std, noise), stratified(torch.rand(len(noise)), torch.randperm(len(noise)))
    loss = cfm_loss(lambda t, x, y: torch.zeros_like(x), make_path("cond_ot", 1e-3), x0, x1, t, data.labels).item()
    u = (x1 - (1 - 1e-3) * x0).square().mean((1, 2, 3))  # one value a row: rows are independent, their entries are not
    assert loss == pytest.approx(1 + 0.999**2, abs=4 * u.std().item() / len(u) ** 0.5)


def test_every_artifact_of_a_model_records_its_precision(tiny: Path) -> None:
    here = resolve("auto", torch.device("cpu"))
    for name in ("autoencoder", "classifier", "flow"):
        assert json.loads((tiny / f"models/{name}/record.json").read_text())["precision"] == here
    for path, kind in (("data/latents.h5", latents.FORMAT), ("data/samples.h5", samples.FORMAT)):
        with hdf5.reading(tiny / path, kind) as file:
            assert file.attribute("precision") == here


def test_samples_have_the_test_labels_and_are_what_the_published_model_draws(tiny: Path) -> None:
    """models/latent_flow, opened as anyone would, with the stage's precision, seed and batches: the same bytes."""
    with (
        hdf5.reading(tiny / "data/samples.h5", samples.FORMAT) as file,
        hdf5.reading(tiny / "data/images.h5", images.FORMAT) as x,
    ):
        labels, generated = file.read("generated/labels"), file.read("generated/images")
        assert np.array_equal(labels, x.read("test/labels"))
        assert generated.shape == x.shape("test/images")
        assert file.shape("reconstructed/validation") == x.shape("validation/images")
    model = LatentFlow.from_pretrained(tiny / "models/latent_flow")
    drawn = model.sample(labels[:100], seed=0, output_type="np", batch_size=100, precision="auto")
    assert isinstance(drawn.images, np.ndarray) and np.array_equal(drawn.images, generated[:100])


@pytest.mark.parametrize(
    ("channels_in", "levels", "images", "latent"),
    [(3, 4, 1, 4), (3, 4, 3, 4), (1, 3, 1, 7), (16, 2, 1, 4), (48, 2, 3, 4)],
    ids=["grey through SD's colour layout", "colour", "grey", "grey folded by 4", "colour folded by 4"],
)
def test_any_autoencoder_fits_by_its_channels(channels_in: int, levels: int, images: int, latent: int) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        channels_in, channels_in, ["DownEncoderBlock2D"] * levels, ["UpDecoderBlock2D"] * levels, [8] * levels,
        norm_num_groups=4, latent_channels=4,
    ).eval()  # fmt: skip
    coder = ImageAutoencoder(model, images, (28, 28))
    batch = torch.randint(0, 256, (2, images, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        mean, std = coder.moments(batch)
        assert mean.shape == std.shape == (2, 4, latent, latent) and (std > 0).all()
        assert coder.decode(mean).shape == batch.shape
    assert torch.equal(coder.images(coder.pixels(batch)), batch), "the adaption itself loses nothing"


def test_colour_images_need_a_colour_autoencoder() -> None:
    with pytest.raises(ConfigError, match="in_channels 4 is for grey images"):
        ImageAutoencoder(autoencoder.build(2, 1, 4, [8], 1), 3, (28, 28))


# --- bundled weights, on real MNIST where a mirror is given ------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("mnist/autoencoder", 6e6),
        ("mnist/flow_map", 4e6),
        ("mnist", 18e6),
        ("classifier", 2e6),
        ("second_classifier", 2e6),
    ],
)
def test_bundled_weights_are_small_and_say_how_they_were_made(name: str, limit: float) -> None:
    record = json.loads((PRETRAINED / name / "record.json").read_text())
    assert size_of(PRETRAINED / name) <= limit
    assert len(record["train_sha256"]) == 64 and record["params"] and record["made"]["date"]


def test_validation_and_test_have_the_same_class_counts(digits: dict[str, Digits]) -> None:
    assert [len(digits[s].labels) for s in SPLITS] == [50_000, 10_000, 10_000]
    assert torch.equal(digits["validation"].labels.bincount(), digits["test"].labels.bincount())


def test_the_bundled_classifier_recognises_test_digits(digits: dict[str, Digits]) -> None:
    assert accuracy(load_model(PRETRAINED / "classifier", Classifier), *digits["test"]) >= 0.993


def test_the_bundled_autoencoder_reconstructs_as_its_record_says(digits: dict[str, Digits]) -> None:
    """PSNR as recorded, and what is asked of it: 30 dB on test images; reconstructed validation images whose labels are
    recognised as often as in real ones within 0.1 points, and which are at most 1.2 times as far from test images."""
    coder = ImageAutoencoder(autoencoder.load(PRETRAINED / "mnist/autoencoder"), 1, (28, 28))
    record = json.loads((PRETRAINED / "mnist/autoencoder/record.json").read_text())
    (validation, labels), (test, _) = digits["validation"], digits["test"]
    decoded = reconstruct(coder, validation, "float32")
    # float16 weights are off by 2⁻¹² of their size at most, twenty layers deep: 0.5 % of the error's amplitude, 0.04 dB.
    assert psnr(validation, decoded) == pytest.approx(record["psnr_validation"], abs=0.05)
    assert psnr(test[:2000], reconstruct(coder, test[:2000], "float32")) >= 30
    classifier = load_model(PRETRAINED / "classifier", Classifier)
    with torch.inference_mode():
        real, again, other = (
            torch.cat([classifier.features(to_pixels(part)) for part in images.split(500)])
            for images in (validation, decoded, test)
        )
        correct, kept = (classifier.head(x).argmax(1).eq(labels).double().mean() for x in (real, again))
    assert abs(kept - correct) <= 0.001
    assert frechet_distance(again, other) <= 1.2 * frechet_distance(real, other)


def test_the_bundled_flow_draws_the_digit_that_is_asked_for(bundled: LatentFlow) -> None:
    drawn = bundled.sample(range(10), 20, seed=0, output_type="pt")
    assert isinstance(drawn.images, torch.Tensor)
    # 200 draws at a true accuracy of 98 % fall below 92.5 % with a probability under 1e-5.
    classifier = load_model(PRETRAINED / "classifier", Classifier)
    assert accuracy(classifier, drawn.images, torch.from_numpy(drawn.labels)) >= 0.925


def test_curves_that_grow_while_stages_run_are_drawn_by_dvc(tiny: Path, tmp_path: Path) -> None:
    live = (tiny / "live/train.csv").read_text().splitlines()
    assert live[0] == "step,loss" and live[-1] == (tiny / "models/flow/curves.csv").read_text().splitlines()[-1]
    shown = command("dvc", "plots", "show", "--json", "-o", str(tmp_path), cwd=tiny)
    assert shown.returncode == 0, shown.stderr
    drawn = json.loads(shown.stdout)
    drawn = drawn.get("data", drawn)
    for name in ("training, live", "loss by t, live", "other trainings, live"):
        assert drawn[name], name
    listed = {Path(out) for stage in STAGES.values() for out in stage["outs"]}
    assert not any(out.parts[0] == "live" for out in listed)

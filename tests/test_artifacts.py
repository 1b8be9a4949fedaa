"""What the stages leave: splits, latents, samples, and the weights that come with the package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lfm.generator import load_generator

from lfm import random
from lfm.errors import ConfigError
from lfm.evaluation.metrics import frechet_distance
from lfm.evaluation.psnr import psnr
from lfm.flow.path import cfm_loss, make_path
from lfm.flow.times import stratified
from lfm.nets import autoencoder
from lfm.nets.autoencoder import ImageAutoencoder
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.latents import LatentScale, draw
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts import latents as store
from pipeline.artifacts.files import IMAGES_FORMAT, LATENTS_FORMAT, PRETRAINED, SAMPLES_FORMAT, SPLITS
from pipeline.params import load_params
from pipeline.sources.datasets import DATASETS, digest, hold_out
from stages.autoencoder import reconstruct
from stages.classifier import accuracy
from tests.conftest import ROOT


def test_splits_share_nothing_and_have_the_same_class_counts(tiny: Path) -> None:
    with arrays.reading(tiny / "data/images.h5", IMAGES_FORMAT) as file:
        images, labels = ({s: file.read(f"{s}/{a}") for s in SPLITS} for a in ("images", "labels"))
    assert [len(images[s]) for s in SPLITS] == [1197, 300, 300]
    assert images["test"].shape[1:] == (1, 28, 28) and images["test"].dtype == np.uint8
    assert np.array_equal(np.bincount(labels["validation"]), np.bincount(labels["test"]))
    rows = {s: {image.tobytes() for image in images[s]} for s in SPLITS}
    assert not rows["train"] & rows["validation"] and not rows["train"] & rows["test"]


def test_form_12_latents_belong_to_their_images_and_are_normalised(tiny: Path) -> None:
    with (
        arrays.reading(tiny / "data/images.h5", IMAGES_FORMAT) as images,
        arrays.reading(tiny / "data/latents.h5", LATENTS_FORMAT) as latents,
    ):
        for split in SPLITS:
            assert np.array_equal(latents.read(f"{split}/labels"), images.read(f"{split}/labels"))
        coder = ImageAutoencoder(autoencoder.load(tiny / "models/autoencoder"), 1, (28, 28))
        rows = random.permutation(0, "test", 0, 1197).numpy()[:64]
        with torch.no_grad():
            mean, std = coder.moments(torch.from_numpy(images.read("train/images")[rows]))
        stored_mean, stored_std = (torch.from_numpy(latents.read(f"train/{name}")) for name in ("mean", "std"))
        # float32 either way (the preset says so); another batch size sums in another order.
        torch.testing.assert_close(mean, stored_mean[rows], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(std, stored_std[rows], rtol=1e-4, atol=1e-4)
        scale = LatentScale(*(torch.from_numpy(latents.read(f"scale/{name}")) for name in ("mean", "std")))
    draws = [
        scale.normalise(draw(stored_mean, stored_std, random.normal(0, "draw", i, stored_mean.shape)))
        for i in range(10)
    ]
    x = torch.stack(draws).double()
    assert x.mean((0, 1, 3, 4)).abs().max() < 0.01
    assert (x.std((0, 1, 3, 4)) - 1).abs().max() < 0.01


def test_form_4_on_the_stored_latents(tiny: Path) -> None:
    """A model that says 0 has the loss E[x1²] + (1 − σ_min)²: shows normalisation, posterior draw and sign at once."""
    with arrays.reading(tiny / "data/latents.h5", LATENTS_FORMAT) as file:
        scale = LatentScale(*(torch.from_numpy(file.read(f"scale/{name}")) for name in ("mean", "std")))
        data = store.read(file, "train", scale, torch.device("cpu"))
    x0, noise = (random.normal(0, name, 0, data.mean.shape) for name in ("x0", "posterior"))
    x1, t = draw(data.mean, data.std, noise), stratified(torch.rand(len(noise)), torch.randperm(len(noise)))
    loss = cfm_loss(lambda t, x, y: torch.zeros_like(x), make_path("cond_ot", 1e-3), x0, x1, t, data.labels).item()
    u = (x1 - (1 - 1e-3) * x0).square().mean((1, 2, 3))  # one value a row: rows are independent, their entries are not
    assert loss == pytest.approx(1 + 0.999**2, abs=4 * u.std().item() / len(u) ** 0.5)


def test_samples_have_the_test_labels_and_do_not_depend_on_how_they_are_batched(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny)
    p = load_params(Path("params.yaml")).sample.model_copy(update={"precision": "float32"})
    generator = load_generator(Path("models/flow"), Path("models/autoencoder"), p)
    with (
        arrays.reading(Path("data/samples.h5"), SAMPLES_FORMAT) as file,
        arrays.reading(Path("data/images.h5"), IMAGES_FORMAT) as images,
    ):
        labels = file.read("generated/labels")
        assert np.array_equal(labels, images.read("test/labels"))
        assert file.shape("generated/images") == images.shape("test/images")
        assert file.shape("reconstructed/validation") == images.shape("validation/images")
    many = generator.integrate(np.arange(50), labels[:50]).x[-1]
    few = generator.integrate(np.arange(20, 30), labels[20:30]).x[-1]
    torch.testing.assert_close(few, many[20:30], rtol=1e-4, atol=1e-5)


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


def test_autoencoders_that_do_not_fit_are_refused() -> None:
    five = autoencoder.build(1, 5, 4, [8], 1)
    with pytest.raises(ConfigError) as error:
        ImageAutoencoder(five, 1, (28, 28))
    assert str(error.value) == (
        "autoencoder: in_channels is 5; accepted are [1, 3, 4, 12, 16, 48] (colours × unshuffle²)"
    )
    with pytest.raises(ConfigError, match=r"in_channels 4 is for grey images, but these have 3 channels"):
        ImageAutoencoder(autoencoder.build(2, 1, 4, [8], 1), 3, (28, 28))


# --- bundled weights, on real MNIST where a mirror is given ------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize(("name", "limit"), [("autoencoder", 6e6), ("flow", 10e6), ("classifier", 2e6)])
def test_bundled_weights_are_small_and_say_how_they_were_made(name: str, limit: float) -> None:
    folder = ROOT / PRETRAINED / name
    record = json.loads((folder / "record.json").read_text())
    assert size_of(folder) <= limit
    assert len(record["train_sha256"]) == 64 and record["params"] and record["made"]["date"]


@pytest.fixture(scope="module")
def splits(mirror: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    p = load_params(ROOT / "params.yaml").data
    full, test, *_ = DATASETS["mnist"](p, False)
    train, validation = hold_out(full, test.labels, p.seed)
    for name in ("autoencoder", "classifier", "flow"):
        record = json.loads((ROOT / PRETRAINED / name / "record.json").read_text())
        assert record["train_sha256"] == digest(train), f"the bundled {name} was fitted on another split"
    pairs = {"train": train, "validation": validation, "test": test}
    return {n: (torch.from_numpy(s.images.copy()), torch.from_numpy(s.labels.copy()).long()) for n, s in pairs.items()}


def test_mnist_is_split_as_designed(splits: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    assert [len(splits[s][1]) for s in SPLITS] == [50_000, 10_000, 10_000]
    assert torch.equal(splits["validation"][1].bincount(), splits["test"][1].bincount())


def test_the_bundled_classifier_is_a_ruler(splits: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    classifier = load_model(ROOT / PRETRAINED / "classifier", Classifier)
    assert accuracy(classifier, *splits["test"]) >= 0.993


def test_the_bundled_autoencoder_keeps_what_its_record_says(
    splits: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """PSNR as recorded, and what is asked of it: 30 dB on test images, whose labels are recognised as often as in real ones
    within 0.1 points; reconstructions at most 1.2 times as far from test images as other real images are."""
    coder = ImageAutoencoder(autoencoder.load(ROOT / PRETRAINED / "autoencoder"), 1, (28, 28))
    record = json.loads((ROOT / PRETRAINED / "autoencoder/record.json").read_text())
    (images, _), (test_images, labels) = splits["validation"], splits["test"]
    decoded, test_decoded = (reconstruct(coder, x, record["params"]["precision"]) for x in (images, test_images))
    # float16 weights are off by 2⁻¹² of their size at most, twenty layers deep: 0.5 % of the error's amplitude, 0.04 dB.
    assert psnr(images, decoded) == pytest.approx(record["psnr_validation"], abs=0.05)
    assert psnr(test_images, test_decoded) >= 30
    classifier = load_model(ROOT / PRETRAINED / "classifier", Classifier)
    with torch.inference_mode():
        real, again, test = (
            torch.cat([classifier.features(to_pixels(part)) for part in x.split(500)])
            for x in (images, decoded, test_images)
        )
    assert abs(accuracy(classifier, test_decoded, labels) - accuracy(classifier, test_images, labels)) <= 0.001
    assert frechet_distance(again, test) <= 1.2 * frechet_distance(real, test)


def test_the_bundled_flow_draws_the_digit_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    generator = load_generator(PRETRAINED / "flow", PRETRAINED / "autoencoder", load_params(Path("params.yaml")).sample)
    labels = np.arange(200) % 10
    images = generator.decode(generator.integrate(np.arange(200), labels).x[-1])
    classifier = load_model(PRETRAINED / "classifier", Classifier)
    # 200 draws at a true accuracy of 98 % fall below 92.5 % with a probability under 1e-5.
    assert accuracy(classifier, torch.from_numpy(images), torch.from_numpy(labels)) >= 0.925

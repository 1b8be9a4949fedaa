"""`lfm.LatentFlow`: what is drawn, saved, inverted and refused, on the bundled model and on small random ones."""

import doctest
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lfm import ConfigError, LatentFlow, Sampler
from lfm.flow.path import LEAST_SIGMA, cond_ot
from lfm.nets import autoencoder
from lfm.nets.autoencoder import ImageAutoencoder
from lfm.nets.classifier import Classifier, to_pixels
from lfm.nets.transformer import Transformer
from lfm.nets.weights import load_model
from tests.conftest import ENVIRONMENT, ROOT

FLOW = {
    "path": "cond_ot", "sigma_min": 0.0, "prediction": "velocity", "scale_mean": [0.1, -0.2], "scale_std": [0.5, 2.0],
    "image_channels": 1, "image_height": 28, "image_width": 28, "autoencoder_sha256": "",
}  # fmt: skip
FAST = Sampler("euler", steps=2)


def small(classes: int = 10, coder: bool = True, **flow: Any) -> LatentFlow:
    """Random weights; latents 2×4×4."""
    torch.manual_seed(0)
    transformer = Transformer(2, 4, 2, "modern", 16, 1, 2, 2, classes)
    for weight in transformer.parameters():
        nn.init.normal_(weight, std=0.2)
    model = autoencoder.build(4, 1, 2, [8, 16], 1).eval()
    return LatentFlow(transformer, FLOW | flow, FAST, ImageAutoencoder(model, 1, (28, 28)) if coder else None)


def small_with(model: LatentFlow, **values: Any) -> LatentFlow:
    """The same with other values of the sampler."""
    return LatentFlow(model.transformer, model.config, model.sampler._replace(**values))


@pytest.fixture(scope="module")
def model() -> LatentFlow:
    return small()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    small().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def pixels(model: LatentFlow, *args: Any, **options: Any) -> np.ndarray:
    images = model.sample(*args, output_type="np", **options).images
    assert isinstance(images, np.ndarray)
    return images


# --- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_model_is_complete_and_comes_back(tmp_path: Path, model: LatentFlow, dtype: torch.dtype) -> None:
    from diffusers import AutoencoderKL

    model.save_pretrained(tmp_path, dtype)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "config.json", "model.safetensors", "flow.json", "sampling.json", "autoencoder/config.json",
        "autoencoder/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert AutoencoderKL.from_pretrained(tmp_path / "autoencoder").config.latent_channels == 2
    again = LatentFlow.from_pretrained(tmp_path)
    assert again.sampler == FAST and again.config == model.config | {
        "autoencoder_sha256": again.config["autoencoder_sha256"]
    }
    before, after = (m.transformer.state_dict() | m.autoencoder.model.state_dict() for m in (model, again))
    for name, weight in before.items():
        assert torch.equal(after[name], weight.to(dtype).float())
    if dtype == torch.float32:
        assert np.array_equal(pixels(again, [3, 1], seed=0), pixels(model, [3, 1], seed=0))


def test_a_model_without_sampling_defaults_or_autoencoder_loads(tmp_path: Path, saved: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "sampling.json").unlink()
    shutil.rmtree(folder / "autoencoder")
    model = LatentFlow.from_pretrained(folder)
    assert model.sampler == Sampler()
    assert model.sample(3, seed=0, output_type="latent", batch_size=1).images.shape == (1, 2, 4, 4)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="autoencoder"):
        model.stream(3)
    pixels(LatentFlow.from_pretrained(folder, autoencoder=saved / "autoencoder"), 3, batch_size=1)


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    """Change keys of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def spoil(name: str, content: bytes | None) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink() if content is None else (folder / name).write_bytes(content)


def not_finite(folder: Path) -> None:
    broken = small()
    broken.transformer.embed.bias.data[0] = torch.nan
    broken.save_pretrained(folder)


WEIGHTS = "autoencoder/diffusion_pytorch_model.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no flow.json": (spoil("flow.json", None), "flow.json"),
    "flow.json not JSON": (spoil("flow.json", b"{"), "flow.json"),
    "flow.json not UTF-8": (spoil("flow.json", b"\xff"), "flow.json"),
    "unknown path": (edit("flow.json", path="straight"), "'path'"),
    "path of another type": (edit("flow.json", path=["cond_ot"]), "'path'"),
    "sigma_min is NaN": (edit("flow.json", sigma_min=math.nan), "'sigma_min'"),
    "no prediction": (edit("flow.json", prediction=None), "'prediction' is missing"),
    "scale of 0": (edit("flow.json", scale_std=[0, 1]), "'scale_std'"),
    "scale of another model": (edit("flow.json", scale_mean=[0] * 3, scale_std=[1] * 3), "3 channels"),
    "unknown sampler value": (edit("sampling.json", speed=1), "sampling.json: 'speed'"),
    "sampler value out of range": (edit("sampling.json", steps=0), "sampling.json: steps"),
    "sampler value of another type": (edit("sampling.json", guidance_interval=1), "sampling.json: guidance_interval"),
    "no config.json": (spoil("config.json", None), "Transformer"),
    "config.json not JSON": (spoil("config.json", b"[" * 10), "Transformer"),
    "config.json of another model": (edit("config.json", width=32), "Transformer"),
    "weights cut short": (lambda f: os.truncate(f / "model.safetensors", 500), "Transformer"),
    "weights not finite": (not_finite, "embed.bias is not finite"),
    "no autoencoder weights": (spoil(WEIGHTS, None), "diffusion_pytorch_model"),
    "another autoencoder": (lambda f: os.truncate(f / WEIGHTS, 500), "another autoencoder"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(
    tmp_path: Path, saved: Path, damage: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(saved, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ConfigError, match=message) as error:
        LatentFlow.from_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


# --- noise → images ----------------------------------------------------------------------------------------------------


def test_an_image_of_a_seed_is_the_same_however_many_are_drawn(model: LatentFlow) -> None:
    """Its bytes with the same batch_size; within a grey level with another.

    Other batch sizes sum in other orders: float32 rounding, 2⁻²⁴ of each term. Some hundred operations deep it stays below
    1e-4 of a latent, and below 0.5 of the 127.5 grey levels a unit that the decoder has: a pixel moves to the next level only.
    """
    many = pixels(model, 3, 70, seed=5)
    assert np.array_equal(pixels(model, 3, 2, seed=5), many[:2])
    assert np.array_equal(pixels(model, 3, 65, seed=5), many[:65])
    assert not np.array_equal(many[0], many[1]) and not np.array_equal(pixels(model, 3, seed=6)[0], many[0])
    for batch_size in (1, 7, 70):
        other = pixels(model, 3, 70, seed=5, batch_size=batch_size)
        assert np.abs(other.astype(int) - many).max() <= 1
    some = pixels(model, 3, 3, seed=5, rows=[69, 0, 12])
    assert np.abs(some.astype(int) - many[[69, 0, 12]]).max() <= 1


def test_a_seed_that_was_drawn_gives_the_same_images(model: LatentFlow) -> None:
    first, second = model.sample(n=3, batch_size=3), model.sample(n=3, batch_size=3)
    assert first.seed != second.seed
    again = model.sample(n=3, seed=first.seed, batch_size=3)
    assert np.array_equal(again.labels, first.labels)
    for a, b in zip(first.images, again.images, strict=True):
        assert a.tobytes() == b.tobytes()


def test_labels_are_drawn_uniformly_from_seed_and_row(model: LatentFlow) -> None:
    batches = model.stream(n=2000, seed=0, batch_size=500, output_type="latent")
    labels = np.concatenate([batch.labels for batch in batches])
    # χ² of ten classes: 9 degrees of freedom; above 35 with a probability under 1e-4.
    assert np.square(np.bincount(labels, minlength=10) - 200).sum() / 200 < 35
    assert model.sample(n=2, rows=[1234, 7], seed=0, output_type="latent").labels.tolist() == labels[[1234, 7]].tolist()


def test_types_of_images(model: LatentFlow) -> None:
    as_array = pixels(model, [3, 1], seed=0)
    assert as_array.shape == (2, 1, 28, 28) and as_array.dtype == np.uint8
    as_tensor, as_latents, pil = (
        model.sample([3, 1], seed=0, output_type=kind).images for kind in ("pt", "latent", "pil")
    )
    assert isinstance(as_tensor, Tensor) and np.array_equal(as_tensor.numpy(), as_array)
    assert isinstance(as_latents, Tensor) and np.array_equal(model.decode(as_latents, "np"), as_array)
    assert isinstance(pil, list) and all(image.mode == "L" for image in pil)
    assert np.array_equal(np.stack([np.asarray(image) for image in pil]), as_array[:, 0])


def test_the_way_from_noise_to_image_is_returned(model: LatentFlow) -> None:
    noise = model.sample([3, 1], seed=0, steps=4, return_path=[0], output_type="latent").path
    drawn = model.sample([3, 1], seed=0, steps=4, return_path=True, output_type="latent")
    assert drawn.times == [0, 0.25, 0.5, 0.75, 1] and drawn.path is not None and noise is not None
    assert torch.equal(drawn.path[0], noise[0]) and torch.equal(drawn.path[-1], drawn.images)  # type: ignore[arg-type]
    nearest = model.sample([3, 1], seed=0, steps=4, return_path=[0.3, 0.9], output_type="latent")
    assert nearest.times == [0.25, 1] and torch.equal(nearest.path[0], drawn.path[1])  # type: ignore[index, arg-type]
    assert model.sample(3, seed=0, batch_size=1).path is None


def test_a_stream_is_lazy_and_lets_go_of_its_batches(model: LatentFlow) -> None:
    calls: list[tuple[int, int]] = []
    stream = model.stream(3, 2000, seed=0, batch_size=50, output_type="latent", progress=lambda *c: calls.append(c))
    assert not calls
    alive: list[weakref.ref[Any]] = []
    for batch in stream:
        assert calls[-1] == (50 * len(calls), 2000) and batch.nfe == 2
        alive.append(weakref.ref(batch.images))
        assert sum(ref() is not None for ref in alive) <= 2, "this batch, and the one before while it is replaced"
    assert len(calls) == 40


def test_a_model_without_labels_draws_and_inverts(latents: Tensor) -> None:
    model = small(classes=0)
    assert pixels(model, n=2, seed=0).shape == (2, 1, 28, 28)
    assert model.invert(latents).shape == latents.shape
    for call in (lambda: model.sample(3), lambda: model.transfer(latents, 3), lambda: model.invert(latents, [0] * 16)):
        with pytest.raises(ConfigError, match="labels"):
            call()
    with pytest.raises(ConfigError, match="guidance_scale"):
        model.sample(n=1, guidance_scale=2)


def test_a_weak_model_is_saved_beside_it_and_moved_away_from(tmp_path: Path) -> None:
    strong, weak = small(), small().transformer
    for weight in weak.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    model = LatentFlow(strong.transformer, strong.config, Sampler("euler", 4, autoguidance_scale=2.0), None, None, weak)
    options: dict[str, Any] = {"seed": 0, "batch_size": 2, "output_type": "latent"}
    drawn, plain = model.sample([3, 1], **options), model.sample([3, 1], autoguidance_scale=1.0, **options)
    assert (drawn.nfe, plain.nfe) == (8, 4)
    assert torch.equal(plain.images, strong.sample([3, 1], sampler=Sampler("euler", 4), **options).images)  # type: ignore[arg-type]
    assert not torch.equal(drawn.images, plain.images)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    assert torch.equal(LatentFlow.from_pretrained(tmp_path).sample([3, 1], **options).images, drawn.images)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="autoguidance_scale is 2"):
        strong.sample([3], sampler=model.sampler, **options)
    with pytest.raises(ConfigError, match="weak: for other latents or classes"):
        LatentFlow(strong.transformer, strong.config, None, None, None, small(classes=0).transformer)
    LatentFlow(strong.transformer, strong.config).save_pretrained(tmp_path)
    assert LatentFlow.from_pretrained(tmp_path).weak is None  # that of the other model is gone


# --- images ↔ latents, and through the noise ---------------------------------------------------------------------------


def test_images_of_any_kind_are_encoded_alike(bundled: LatentFlow) -> None:
    images = pixels(bundled, [3, 1], seed=0, batch_size=2)
    pil = [Image.fromarray(image[0]) for image in images]
    expected = bundled.encode(images)
    assert expected.shape == (2, 6, 4, 4)
    for kind in (pil, [image.convert("RGB") for image in pil], images[:, 0], torch.from_numpy(images)):
        assert torch.equal(bundled.encode(kind), expected)
    torch.testing.assert_close(bundled.encode(pil[1])[0], expected[1], rtol=1e-4, atol=1e-4)
    # What was decoded from a latent is close to what its latent decodes to: 20 dB, a tenth of the range.
    error = (np.asarray(bundled.decode(expected, "np"), float) - images) / 255
    assert np.square(error).mean() < 0.1**2


def test_inversion_returns_and_interpolation_ends_at_its_images(bundled: LatentFlow) -> None:
    x = bundled.sample([3, 5], seed=0, output_type="latent", batch_size=2).images
    assert isinstance(x, Tensor)

    def returned(steps: int) -> float:
        back = bundled.generate(bundled.invert(x, [3, 5], steps), [3, 5], steps=steps, output_type="latent")
        return float((back - x).abs().max())

    coarse, fine = returned(20), returned(40)
    # A solver of order 4 errs 16 times less with half the step, until float32 rounding (1e-5 of latents of size 4) is left.
    assert coarse < 0.01 and fine < coarse / 8 + 4e-5
    steps = bundled.interpolate(x[:1], x[1:], 3, steps=40, output_type="latent")
    assert len(steps) == 3 and all(step.shape == (1, 6, 4, 4) for step in steps)
    assert torch.cat([steps[0] - x[0], steps[-1] - x[1]]).abs().max() < 2 * max(coarse, 1e-3)


def test_transferred_digits_are_recognised_as_their_targets(bundled: LatentFlow) -> None:
    images = bundled.sample([3, 8], n=2, seed=0, output_type="pt", batch_size=4).images
    columns = bundled.transfer(images, range(10), [3, 3, 8, 8], steps=20, output_type="pt")
    assert len(columns) == 10 and all(column.shape == (4, 1, 28, 28) for column in columns)
    classifier = load_model(ROOT / "lfm/pretrained/classifier", Classifier)
    with torch.no_grad():
        labels = torch.stack([classifier(to_pixels(column)).argmax(1) for column in columns])
    assert (labels == torch.arange(10)[:, None]).float().mean() > 0.8


def test_the_velocity_is_guided_as_the_formula_says(model: LatentFlow, latents: Tensor) -> None:
    conditional, unconditional = model.velocity(0.3, latents, 3), model.velocity(0.3, latents)
    expected = unconditional + 2.5 * (conditional - unconditional)
    torch.testing.assert_close(model.velocity(0.3, latents, 3, 2.5), expected, rtol=1e-4, atol=1e-5)
    assert (expected - conditional).abs().max() > 0.1


# --- likelihood --------------------------------------------------------------------------------------------------------

SPREAD = 0.6


class Gaussian(Transformer):
    """The optimal velocity of x1 ~ N(y / 10, 0.6²) on the straight path, in closed form."""

    def forward(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        m, c = (y / 10)[:, None, None, None], cond_ot(t)
        gain = (c.alpha * SPREAD**2 - c.sigma) / (c.alpha**2 * SPREAD**2 + c.sigma**2)
        return m + gain * (x - c.alpha * m)


@pytest.mark.parametrize("options", [{"divergence": "exact"}, {"probes": 3}])
def test_the_likelihood_of_a_gaussian_is_its_density(latents: Tensor, options: dict[str, Any]) -> None:
    """Whose Jacobian is a multiple of the identity, so that a single Rademacher probe is exact."""
    model = LatentFlow(Gaussian(2, 4, 2, "dit", 8, 1, 1, 1, 10), FLOW)
    labels = torch.arange(16) % 10
    x = SPREAD * latents + (labels / 10)[:, None, None, None]
    expected = -(latents.square() / 2 + math.log(SPREAD * math.sqrt(2 * math.pi))).sum((1, 2, 3))
    coarse, fine = (model.log_prob(x, labels, steps=steps, **options) for steps in (20, 40))
    # Order 4: the finer solution's error is 1/15 of the difference; and the rounding of 32 float32 terms, 160 times added.
    limit = np.abs(coarse.nats - fine.nats).max() / 15 * 1.1 + 160 * 2.0**-24 * 32
    assert np.abs(fine.nats - expected.numpy()).max() < limit < 0.05
    assert fine.standard_error.max() < 1e-4 and fine.dimensions == 32
    np.testing.assert_allclose(fine.bits_per_dim, -fine.nats / 32 / math.log(2))


def test_standard_errors_of_the_likelihood_are_honest(model: LatentFlow, latents: Tensor) -> None:
    exact = model.log_prob(latents, 3, divergence="exact", steps=8)
    estimate = model.log_prob(latents, 3, probes=48, steps=8)
    assert (
        not exact.standard_error.any() and np.isnan(model.log_prob(latents, 3, probes=1, steps=1).standard_error).all()
    )
    z = (estimate.nats - exact.nats) / estimate.standard_error
    # 16 squares of about normal z: a χ² of 16 degrees of freedom lies in [3.9, 39] but for 1 case in 500.
    assert 3.9 < np.square(z).sum() < 39
    part = model.log_prob(latents[5:7], 3, probes=48, steps=8, rows=[5, 6])
    np.testing.assert_allclose(part.nats, estimate.nats[5:7], rtol=1e-4)


# --- what is refused ---------------------------------------------------------------------------------------------------

X, GREY = torch.zeros(2, 2, 4, 4), np.zeros((2, 28, 28), np.uint8)
REFUSED: dict[str, tuple[Callable[[LatentFlow], object], str]] = {
    "label out of range": (lambda m: m.sample([3, 10]), "labels: 10"),
    "label below 0": (lambda m: m.sample(-1), "labels: -1"),
    "label of another type": (lambda m: m.sample("three"), "labels"),  # type: ignore[arg-type]
    "fraction of a label": (lambda m: m.sample(np.array([0.5])), "labels"),
    "no label": (lambda m: m.sample([]), "labels"),
    "null labels": (lambda m: m.invert(X, [10, 10]), "labels: 10"),
    "too many labels": (lambda m: m.invert(X, [1, 2, 3]), "labels: 3"),
    "n of 0": (lambda m: m.sample(3, 0), "n is 0"),
    "n of True": (lambda m: m.sample(3, True), "n is True"),
    "negative seed": (lambda m: m.sample(3, seed=-1), "seed"),
    "fewer rows than images": (lambda m: m.sample(3, 3, rows=[1]), "rows"),
    "negative rows": (lambda m: m.sample(3, rows=[-1]), "rows"),
    "rows of fractions": (lambda m: m.sample(n=1, rows=[0.5]), "rows"),  # type: ignore[list-item]
    "unknown solver": (lambda m: m.sample(3, solver="rk45"), "solver is 'rk45'"),
    "steps of 0": (lambda m: m.sample(3, steps=0), "steps is 0"),
    "text as guidance": (lambda m: m.sample(3, guidance_scale="high"), "guidance_scale"),  # type: ignore[arg-type]
    "guidance not a number": (lambda m: m.sample(3, guidance_scale=math.nan), "guidance_scale"),
    "falling interval": (lambda m: m.sample(3, guidance_interval=(0.9, 0.1)), "guidance_interval"),
    "interval of one": (lambda m: m.sample(3, guidance_interval=(0.9,)), "guidance_interval"),  # type: ignore[arg-type]
    "time beyond 1": (lambda m: m.sample(3, return_path=[2]), "return_path"),
    "single time": (lambda m: m.sample(3, return_path=0.5), "return_path"),  # type: ignore[arg-type]
    "unknown type": (lambda m: m.sample(3, output_type="jpg"), "output_type"),  # type: ignore[arg-type]
    "unknown type of decode": (lambda m: m.decode(X, "jpg"), "output_type"),  # type: ignore[arg-type]
    "unknown precision": (lambda m: m.sample(3, precision="half"), "precision"),
    "batch size of 0": (lambda m: m.encode(GREY, batch_size=0), "batch_size"),
    "image size": (lambda m: m.encode(GREY[:, 1:]), "images are"),
    "image type": (lambda m: m.encode(GREY / 255), "images are float64"),
    "images of several sizes": (lambda m: m.encode([Image.new("L", (28, n)) for n in (28, 27)]), "images"),
    "no images": (lambda m: m.encode([]), "images are"),
    "no image at all": (lambda m: m.encode("three.png"), "images are"),
    "latents of another size": (lambda m: m.decode(X[:, :1]), "latents are"),
    "latents of another type": (lambda m: m.decode(X.numpy()), "latents are"),  # type: ignore[arg-type]
    "no latents": (lambda m: m.invert(X[:0]), "latents are"),
    "guidance in generate": (lambda m: m.generate(X, 3, guidance_scale=-1), "guidance_scale"),
    "steps in invert": (lambda m: m.invert(X, 3, steps=0), "steps is 0"),
    "one picture between": (lambda m: m.interpolate(X, X, 1), "n is 1"),
    "unequal ends": (lambda m: m.interpolate(X, X[:1]), "2 images to start from and 1"),
    "no target": (lambda m: m.transfer(X, []), "labels"),
    "unknown divergence": (lambda m: m.log_prob(X, divergence="sampled"), "divergence"),  # type: ignore[arg-type]
    "adaptive solver": (lambda m: m.log_prob(X, solver="dopri5"), "solver is 'dopri5'"),
    "no probes": (lambda m: m.log_prob(X, probes=0), "probes is 0"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_an_argument_that_cannot_be_used_is_named(
    model: LatentFlow, call: Callable[[LatentFlow], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        call(model)


@pytest.mark.parametrize("name", Sampler._fields)
@pytest.mark.parametrize("value", [None, "a", -1, math.nan, [2, 1]])
def test_a_sampler_names_the_value_that_cannot_be_used(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is "):
        Sampler()._replace(**{name: value}).check()


# --- import, hub, documentation ----------------------------------------------------------------------------------------


def python(code: str, **environment: str) -> str:
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_lfm_loads_nothing_heavy_and_the_model_neither_diffusers_nor_the_hub() -> None:
    loaded = "print(sorted({'torch', 'diffusers', 'huggingface_hub', 'sklearn'} & {*sys.modules}))"
    output = python(f"import sys, lfm; dir(lfm); lfm.__version__; {loaded}; from lfm import LatentFlow; {loaded}")
    assert output.splitlines() == ["[]", "['torch']"]


def test_a_hub_id_is_loaded_from_its_cache_and_refused_in_one_line_without_a_network(
    tmp_path: Path, saved: Path
) -> None:
    cache, commit = tmp_path / "models--owner--digits", "0123456789" * 4
    shutil.copytree(saved, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    code = (
        "from lfm import LatentFlow, ConfigError\n"
        "print(LatentFlow.from_pretrained('owner/digits').sampler.solver)\n"
        "try: LatentFlow.from_pretrained('owner/other')\n"
        "except ConfigError as error: print(error)\n"
    )
    first, second = python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1").splitlines()
    assert first == FAST.solver and second.startswith("owner/other: ")


@pytest.mark.parametrize("name", ["lfm", "lfm.model", "lfm.sampling.sampler"])
def test_examples_in_docstrings_are_true(
    name: str, bundled: LatentFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"model": bundled}, optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed


def test_public_names_are_those_that_are_listed() -> None:
    import lfm

    assert dir(lfm) == sorted([*lfm.__all__, "__version__"]) and set(lfm.__all__) == set(lfm._HOMES)
    assert all(getattr(lfm, name).__name__ == name for name in lfm.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = lfm.nothing


def test_files_of_a_model_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        small().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    rights = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert len(rights) >= 5 and set(rights.values()) == {0o644}, rights


class Nearly(Transformer):
    """E[x1 | x_t] of standard normal data on the straight path, and an error of at most 0.05."""

    def forward(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return t * x / (t**2 + (1 - t) ** 2) + 0.05 * (3 * x).sin()


def test_an_imperfect_data_prediction_inverts_and_has_a_likelihood(
    latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divided by a σ that falls to 1e-5, its error is all that a solver sees. The derivative of the error, 0.15 at most, over
    σ, integrated up to where σ is LEAST_SIGMA and constant over the rest: 0.15 (ln 20 + 1) nats, 0.9 bits."""

    def model() -> LatentFlow:
        return LatentFlow(Nearly(2, 4, 2, "modern", 16, 1, 2, 2, 10), FLOW | {"prediction": "data"})

    def away(flow: LatentFlow) -> float:
        """Bits a dimension from those of the density."""
        density = torch.distributions.Normal(0, 1).log_prob(latents).flatten(1).mean(1) / -math.log(2)
        return float(np.abs(flow.log_prob(latents, 0).bits_per_dim - density.numpy()).max())

    flow = model()
    back = flow.generate(flow.invert(latents, 0), 0, output_type="latent")
    assert float((back - latents).abs().max()) < 1e-3 and away(flow) < 0.15 * (
        math.log(1 / LEAST_SIGMA) + 1
    ) / math.log(2)
    monkeypatch.setattr("lfm.model.LEAST_SIGMA", 0.0)
    assert away(model()) > 100


def test_class_transfer_is_guided_outside_the_interval_too(model: LatentFlow, latents: Tensor) -> None:
    moved = [
        small_with(model, guidance_scale=scale, guidance_interval=interval).transfer(
            latents, [3], output_type="latent"
        )[0]
        for scale, interval in ((3.0, (0.5, 0.5)), (3.0, (0.0, 1.0)), (1.0, (0.0, 1.0)))
    ]
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], moved[2])


@pytest.mark.parametrize("part", ["transformer", "autoencoder"])
def test_weights_that_overflow_end_in_an_error_instead_of_black_images(latents: Tensor, part: str) -> None:
    spoilt = small()
    module = spoilt.transformer if part == "transformer" else spoilt.autoencoder.model
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1e30)
    images = np.zeros((1, 1, 28, 28), np.uint8)
    calls: list[Callable[[], object]] = [lambda: spoilt.sample(3, seed=0, batch_size=1, steps=2, solver="midpoint")]
    if part == "transformer":
        calls += [lambda: spoilt.invert(latents, 3, 2), lambda: spoilt.log_prob(latents, 3, steps=1)]
        calls += [lambda: spoilt.generate(latents, 3, steps=2, output_type="latent")]
    else:
        calls += [lambda: spoilt.decode(latents), lambda: spoilt.encode(images)]
    for call in calls:
        with pytest.raises(ConfigError, match="not finite"):
            call()


def test_the_adaptive_solver_works_in_float32(model: LatentFlow) -> None:
    s = Sampler("dopri5", steps=2, rtol=0.1, atol=0.1)
    drawn = [
        model.sample(3, seed=0, sampler=s, output_type="latent", batch_size=1, precision=kind)
        for kind in ("float32", "bf16")
    ]
    assert drawn[0].nfe == drawn[1].nfe and torch.equal(drawn[0].images, drawn[1].images)  # type: ignore[arg-type]

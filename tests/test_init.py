"""Trainings that begin with the weights of a folder."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lfm.nets import autoencoder
from lfm.nets.transformer import Transformer
from lfm.nets.weights import MODEL_FILES, load_model, save_model
from pipeline.errors import UserError
from pipeline.training.init import BUNDLED, begin_with, init_folder
from stages import autoencoder as stage
from tests.conftest import context, parameters

make = partial(Transformer, 4, 4, patch_size=2, block="modern", depth=1, heads=2, mlp_ratio=4)


def digest_of(section: str, init: str, bundled: str, names: tuple[str, ...]) -> str:
    """What the error says is to be set."""
    with pytest.raises(UserError, match=rf"^{section}\.init_digest is None, ") as error:
        init_folder(section, init, None, bundled, names)
    return str(error.value).rpartition(" ")[2]


def test_a_flow_begins_with_the_weights_that_its_digest_pins(tmp_path: Path) -> None:
    source = make(width=32, classes=10)
    with torch.no_grad():
        source.final.weight.normal_()
    save_model(tmp_path, source, source.config)
    pinned = digest_of("train", str(tmp_path), "", MODEL_FILES)
    folder = init_folder("train", str(tmp_path), pinned, "", MODEL_FILES)
    model = make(width=32, classes=10)
    begin_with("train", "x", model, load_model(folder, Transformer).state_dict(), ("label.weight",))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    save_model(tmp_path, model.float(), model.config | {"block": "modern", "classes": 10}, torch.float16)
    with pytest.raises(UserError, match=r"train\.init_digest is '" + pinned):
        init_folder("train", str(tmp_path), pinned, "", MODEL_FILES)


def test_other_classes_are_learned_anew_and_all_else_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    source, model = make(width=32, classes=10), make(width=32, classes=26)
    labels = model.state_dict()["label.weight"].clone()
    begin_with("train", "x", model, source.state_dict(), ("label.weight",))
    for name, value in model.state_dict().items():
        assert torch.equal(value, labels if name == "label.weight" else source.state_dict()[name]), name
    assert capsys.readouterr().err == "train: begins with the weights of x, but for label.weight: other classes\n"


def test_the_bundled_flow_and_autoencoder_can_be_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_model(
        init_folder("train", "bundled", digest_of("train", "bundled", "", MODEL_FILES), "", MODEL_FILES), Transformer
    ).config
    assert {k: config[k] for k in ("width", "depth", "heads", "patch_size")} == {
        k: v for k, v in parameters().model.model_dump().items() if k in ("width", "depth", "heads", "patch_size")
    }
    pinned = digest_of("autoencoder", "bundled", "autoencoder", autoencoder.FILES)
    changes: dict[str, Any] = {
        "init": "bundled",
        "init_digest": pinned,
        "steps": 1,
        "learning_rate": 1e-9,
        "batch_size": 2,
    }
    p = parameters(**{f"autoencoder__{k}": v for k, v in changes.items()}, autoencoder__compile=False)
    pictures = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    coder, _ = stage.train(context("autoencoder", p), pictures)
    for name, value in autoencoder.load(BUNDLED / "autoencoder").state_dict().items():
        torch.testing.assert_close(coder.model.state_dict()[name], value, atol=1e-7, rtol=0)

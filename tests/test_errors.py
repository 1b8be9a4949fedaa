"""What a user reads when something is wrong: one line that names the key or file, the value, and the way out."""

import gzip
import hashlib
import http.server
import json
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from lfm.errors import ConfigError
from lfm.nets import autoencoder
from lfm.nets.classifier import Classifier
from lfm.nets.weights import load_model
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.bundled import check_bundled
from pipeline.artifacts.files import IMAGES_FORMAT, publishing, read_json
from pipeline.errors import UserError
from pipeline.params import Loader, load_params, validate_params
from pipeline.sources import download
from stages.autoencoder import bring
from stages.fetch import read_idx
from tests.conftest import ROOT, command
from tools.workspace import apply, read_preset

PARAMS = (ROOT / "params.yaml").read_text()


def test_the_params_of_the_project_are_valid_and_frozen() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.train.steps = 1


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.e-5", "+1.5e-05", ".5", "1e0"])
def test_floats_are_those_of_yaml_1_2(number: str) -> None:
    assert yaml.load(f"x: {number}", Loader) == {"x": float(number)}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.steps", "many", "train.steps is 'many'; it must be a valid integer"),
        ("train.steps", 0, "train.steps is 0; it must be at least 1"),
        ("train.steps", 1.5, "train.steps is 1.5; it must be a valid integer"),
        ("train.steps", True, "train.steps is True; it must be a valid integer"),
        ("train.learning_rate", float("nan"), "train.learning_rate is nan; it must be a finite number"),
        ("train.learning_rate", -1.0, "train.learning_rate is -1.0; it must be greater than 0"),
        ("train.ema_decay", 1.0, "train.ema_decay is 1.0; it must be less than 1"),
        ("train.compile", "yes", "train.compile is 'yes'; it must be a valid boolean"),
        ("train.precision", "fp16", "train.precision is 'fp16'; it must be 'bf16' or 'float32'"),
        ("train.warmup_steps", 10**9, "train.warmup_steps 1000000000 must be below steps (2000000); lower it"),
        ("train.snapshots", [0.5, 0], "train.snapshots [0.5, 0.0] must rise, each once; sort them"),
        (
            "data.dataset",
            "cifar10",
            "data.dataset is 'cifar10'; it must be 'mnist', 'fashion_mnist', 'kmnist', 'digits' or 'folder'",
        ),
        ("data.seed", None, "data.seed is None; it must be a valid integer"),
        (
            "data.dataset",
            "folder",
            "data.root is None, and dataset is 'folder'; name a directory that holds a sub-folder a class",
        ),
        ("data.image_size", 33, "data.image_size is 33; it must be a multiple of 2"),
        ("data.image_size", 6, "data.image_size is 6; it must be at least 8"),
        ("data.skip_broken", None, "data.skip_broken is None; it must be a valid boolean"),
        ("autoencoder.unshuffle", 3, "autoencoder.unshuffle is 3; it must be 1, 2 or 4"),
        ("autoencoder.widths", [], "autoencoder.widths is []; it must have at least 1 item, not 0"),
        ("autoencoder.widths", [60], "autoencoder.widths.0 is 60; it must be a multiple of 8"),
        ("model.heads", 5, "model.width 128 must be a multiple of 4 and of heads (5); change one of them"),
        (
            "sample.solver",
            "rk45",
            "sample.solver is 'rk45'; it must be 'euler', 'midpoint', 'heun', 'rk4', 'dopri5' or 'euler_maruyama'",
        ),
        ("flow.path", "linear", "flow.path is 'linear'; it must be 'cond_ot', 'gvp' or 'vp'"),
        ("model.labels", False, "sample.guidance_scale 3 needs labels, and model.labels is false; set it to 1"),
        ("sample.guidance_interval", [0.5, 0.1], "sample.guidance_interval [0.5, 0.1] must rise; swap its ends"),
        ("sample.guidance_interval", [0.5], "sample.guidance_interval is [0.5]; it must have at least 2 items, not 1"),
        ("flow.sigma_min", 1, "flow.sigma_min is 1; it must be less than 1"),
        ("report.zoom", 100, "report.zoom is 100; it must be at most 16"),
        ("evaluate.bootstrap", 1, "evaluate.bootstrap is 1; it must be at least 2"),
        ("evaluate.nearest_quantile", 1.0, "evaluate.nearest_quantile is 1.0; it must be less than 1"),
        ("classifier.batch_size", 1, "classifier.batch_size is 1; it must be at least 2"),
        ("classifier.source", "hub", "classifier.source is 'hub'; it must be 'bundled' or 'train'"),
        ("encode.batch_size", 0, "encode.batch_size is 0; it must be at least 1"),
        ("likelihood.images", -1, "likelihood.images is -1; it must be at least 1"),
        (
            "likelihood.solver",
            "dopri5",
            "likelihood.solver is 'dopri5'; it must be 'euler', 'midpoint', 'heun' or 'rk4'",
        ),
        ("train.snapshots", "x", "train.snapshots is 'x'; it must be a valid list"),
        ("train.gradient_clip", float("inf"), "train.gradient_clip is inf; it must be a finite number"),
        ("runtime.progress", 1, "runtime.progress is 1; it must be a valid boolean"),
        ("model.mlp_ratio", None, "model.mlp_ratio is None; it must be a valid number"),
        ("model.depth", 10**6, "model.depth is 1000000; it must be at most 100"),
        (
            "model.heads",
            64,
            "model.width 128 must with block modern be a multiple of 4 · heads (256); change one of them",
        ),
        ("autoencoder.revision", 5, "autoencoder.revision is 5; it must be a valid string"),
        ("autoencoder.source", "", "autoencoder.source is ''; it must have at least 1 character"),
        ("autoencoder.kl_weight", "1e-3", "autoencoder.kl_weight is '1e-3'; it must be a valid number"),
        ("sample.batch_size", "500", "sample.batch_size is '500'; it must be a valid integer"),
        ("sample.steps", 10**30, "sample.steps is 1000000000000000000000000000000; it must be at most 10000"),
        ("evaluate.kid_blocks", [10], "evaluate.kid_blocks is [10]; it must be a valid integer"),
        ("flow.logit_std", {"a": 1}, "flow.logit_std is {'a': 1}; it must be a valid number"),
        ("data.seed", 2**63, "data.seed is 9223372036854775808; it must be less than 9223372036854775808"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(key: str, value: Any, message: str) -> None:
    tree = yaml.load(PARAMS, Loader)
    section, _, leaf = key.partition(".")
    tree["train"]["steps"] = 2_000_000
    tree[section][leaf] = value
    with pytest.raises(UserError) as error:
        validate_params(tree, "params.yaml")
    assert str(error.value) == f"params.yaml: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "params.yaml: must hold sections (data, autoencoder, classifier, encode, model, flow, train, sample, "
             "likelihood, evaluate, report, runtime), but is None"),
        (PARAMS + "extra:\n  a: 1\n", "params.yaml: extra is not a known key; known here: data, autoencoder, classifier, "
         "encode, model, flow, train, sample, likelihood, evaluate, report, runtime"),
        (PARAMS.replace("  sigma_min: 1e-3", "  sigma: 1e-3"), "params.yaml: flow.sigma_min is missing; add it "
         "(`git diff params.yaml` shows what was removed)"),
        (PARAMS + "  colour: 1\n", "params.yaml: runtime.colour is not a known key; known here: progress, checkpoint_every"),
        (PARAMS + "  progress: false\n", "params.yaml: not readable as YAML (key 'progress' stands twice"),
        ("data: [", "params.yaml: not readable as YAML (while parsing a flow"),
    ],
    ids=["empty", "unknown section", "missing key", "unknown key", "key twice", "not YAML"],
)  # fmt: skip
def test_a_bad_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_params(Path("params.yaml"))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_missing_params_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params.yaml: no such file; `git checkout .*params.yaml` brings it back$"):
        load_params(tmp_path / "params.yaml")


def test_a_bad_preset_is_told(tmp_path: Path) -> None:
    preset = tmp_path / "mine"
    preset.write_text("-S train.step=3")
    with pytest.raises(UserError, match=r"mine: train.step is not a known key; see params.yaml$"):
        apply(yaml.load(PARAMS, Loader), read_preset(preset), str(preset))
    preset.write_text("train.steps=3")
    with pytest.raises(UserError, match=r"mine: must hold `-S section.key=value` flags alone; mend it$"):
        read_preset(preset)


# --- HDF5 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("data/x.h5")
    with arrays.writing(path) as file:
        file.add("train/images", np.arange(4096, dtype=np.float32).reshape(64, 64))
        file.attributes(format="test/1")
    return path


REMAKE = "delete data/x.h5 and run `dvc repro` to make or restore it"


def test_arrays_come_back_and_the_same_writes_give_the_same_bytes(store: Path) -> None:
    again, array = Path("data/y.h5"), np.arange(4096, dtype=np.float32).reshape(64, 64)
    with arrays.writing(again) as copy:
        copy.create("train/images", (64, 64), np.float32)
        for start in (0, 40):
            copy.put("train/images", start, array[start : start + 40])
        copy.attributes(format="test/1")
    assert again.read_bytes() == store.read_bytes()
    with arrays.reading(again, "test/1") as file:
        assert np.array_equal(file.read("train/images"), array)
        assert np.array_equal(file.read("train/images", 3, 5), array[3:5])
        assert file.shape("train/images") == (64, 64)


def test_another_kind_of_file_is_told(store: Path) -> None:
    with pytest.raises(UserError) as error, arrays.reading(store, "test/2"):
        pass
    assert str(error.value) == f"data/x.h5: its format is 'test/1', not 'test/2'; {REMAKE}"


def test_a_failed_write_leaves_nothing_and_spoils_nothing(store: Path) -> None:
    before = store.read_bytes()
    with pytest.raises(RuntimeError, match="stop"), arrays.writing(store) as file:
        file.add("a", np.zeros(3))
        raise RuntimeError("stop")
    assert store.read_bytes() == before
    assert [p.name for p in store.parent.iterdir()] == ["x.h5"]


def test_a_missing_file_is_told(store: Path) -> None:
    with pytest.raises(UserError) as error, arrays.reading(Path("data/none.h5"), "test/1"):
        pass
    assert str(error.value) == "data/none.h5: no such file; run `dvc repro` to make it"


def test_a_truncated_file_is_told(store: Path) -> None:
    store.write_bytes(store.read_bytes()[:5000])
    with pytest.raises(UserError) as error, arrays.reading(store, "test/1"):
        pass
    assert str(error.value).startswith("data/x.h5: not a whole HDF5 file (") and str(error.value).endswith(REMAKE)
    assert "truncated" in str(error.value)


def test_a_flipped_bit_is_told(store: Path) -> None:
    data = bytearray(store.read_bytes())
    at = data.index(np.arange(1000, 1010, dtype=np.float32).tobytes())
    data[at] ^= 1
    store.write_bytes(data)
    with pytest.raises(UserError) as error, arrays.reading(store, "test/1") as file:
        file.read("train/images")
    assert str(error.value).startswith("data/x.h5: array 'train/images' is damaged (") and REMAKE in str(error.value)


def test_missing_arrays_and_attributes_are_told(store: Path) -> None:
    with arrays.reading(store, "test/1") as file:
        with pytest.raises(UserError) as error:
            file.read("test/images")
        assert str(error.value) == f"data/x.h5: no array 'test/images' (it holds: train/images); {REMAKE}"
        with pytest.raises(UserError) as error:
            file.attribute("classes")
        assert str(error.value) == f"data/x.h5: no attribute 'classes'; {REMAKE}"


def test_arrays_that_point_elsewhere_are_refused(store: Path) -> None:
    with h5py.File(store, "a") as file:
        file["link"] = h5py.ExternalLink("other.h5", "/train/images")
        layout = h5py.VirtualLayout((64, 64), np.float32)
        layout[:] = h5py.VirtualSource("other.h5", "train/images", (64, 64))
        file.create_virtual_dataset("virtual", layout)
    with arrays.reading(store, "test/1") as opened:
        for name in ("link", "virtual"):
            with pytest.raises(UserError, match=f"array '{name}' points to another file, which is refused"):
                opened.read(name)


# --- folders and JSON ---------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "models/x"
    with publishing(folder) as part:
        (part / "old").write_text("1")
        assert not folder.exists()
    with pytest.raises(RuntimeError, match="stop"), publishing(folder) as part:
        (part / "new").write_text("2")
        raise RuntimeError("stop")
    assert [f.name for f in folder.iterdir()] == ["old"]
    with publishing(folder) as part:
        (part / "new").write_text("2")
    assert [f.name for f in folder.iterdir()] == ["new"] and [f.name for f in folder.parent.iterdir()] == ["x"]


def test_bad_json_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("flow.json")
    for text, message in {
        None: "flow.json: no such file; run `dvc repro` to make it",
        "{": "flow.json: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        "delete it and run `dvc repro`",
        "[]": "flow.json: has no 'scale'; delete it and run `dvc repro`",
        '{"a": 1}': "flow.json: has no 'scale'; delete it and run `dvc repro`",
    }.items():
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError) as error:
            read_json(path, scale=float)
        assert str(error.value) == message


# --- downloads ---------------------------------------------------------------------------------------------------------

CONTENT = gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab", mtime=0)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
WAYS = (
    "Ways out: go online, or set LFM_MIRROR to a directory or URL that holds it, or set data.dataset: digits in "
    "params.yaml, which needs no download"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A local HTTP server of tmp_path/served; yields its address."""
    (tmp_path / "served/mnist").mkdir(parents=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("place", ["served/mnist", "served"])
def test_a_mirror_is_a_directory_or_a_url(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / place / "a.gz").write_bytes(CONTENT)
    for mirror in (str(tmp_path / "served"), server, server + "/"):
        monkeypatch.setenv("LFM_MIRROR", mirror)
        assert download.fetch("mnist", "a.gz", MD5, [], show=False) == CONTENT
    monkeypatch.setenv("LFM_MIRROR", "served")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert download.fetch("mnist", "a.gz", MD5, [], show=False) == CONTENT
    monkeypatch.delenv("LFM_MIRROR")
    if place == "served":
        assert download.fetch("mnist", "a.gz", MD5, [server + "/none", server], show=False) == CONTENT


def test_what_cannot_be_fetched_is_told_with_every_place(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TRIES", 1)
    (tmp_path / "served/a.gz").write_bytes(b"<html>a proxy's error page</html>")
    found = hashlib.md5(b"<html>a proxy's error page</html>", usedforsecurity=False).hexdigest()
    monkeypatch.setenv("LFM_MIRROR", str(tmp_path / "served"))
    with pytest.raises(UserError) as error:
        download.fetch("mnist", "a.gz", MD5, [server + "/none", "http://127.0.0.1:1"], show=False)
    assert str(error.value) == (
        f"a.gz (expected md5 {MD5}) could not be fetched. Tried {tmp_path}/served/mnist/a.gz: no such file; "
        f"{tmp_path}/served/a.gz: md5 {found} of 33 bytes, damaged or another file; "
        f"{server}/none/a.gz: the server answered 404; http://127.0.0.1:1/a.gz: no connection. {WAYS}"
    )


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"<html>", "a.gz: not a gzip file (Not a gzipped file (b'<h')); fetch it again"),
        (CONTENT[:-9], "a.gz: not a gzip file (Compressed file ended before the end-of-stream marker was reached); "
                       "fetch it again"),
        (gzip.compress(b"P5 28"), "a.gz: starts with 50 35 20 32, not with the IDX magic 00 00 08; fetch it again"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03ab"), "a.gz: holds 2 values, its header says [3]; fetch it again"),
        (gzip.compress(b"\0\0\x08\x02\0\0\0\x03"), "a.gz: holds 4 values, its header says []; fetch it again"),
    ],
    ids=["not gzip", "truncated gzip", "not IDX", "too short", "header cut"],
)  # fmt: skip
def test_a_bad_idx_file_is_told(packed: bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_idx("a.gz", packed)
    assert str(error.value) == message


def test_a_good_idx_file_is_read() -> None:
    assert read_idx("a.gz", CONTENT).tolist() == list(b"ab")


# --- models ------------------------------------------------------------------------------------------------------------


def test_an_autoencoder_from_a_directory_is_pinned_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    with pytest.raises(UserError) as error:
        bring(str(folder), None, False)
    assert str(error.value) == (
        f"autoencoder.source: '{folder}' is neither bundled, train, a directory that exists nor a hub id (owner/name); "
        "mend it"
    )
    autoencoder.save(folder, autoencoder.build(4, 1, 4, [8, 16], 1))
    with pytest.raises(UserError) as error:
        bring(str(folder), None, False)
    message, _, digest = str(error.value).rpartition(" ")
    assert message.startswith(f"autoencoder.revision is None, but the content of {folder} has {digest}; set")
    assert bring(str(folder), digest, False) == folder
    (folder / autoencoder.WEIGHTS).write_bytes((folder / autoencoder.WEIGHTS).read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"autoencoder\.revision is"):
        bring(str(folder), digest, False)


def test_a_hub_id_needs_a_commit_and_says_so_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"autoencoder.revision is 'main'; for the hub's a/b it must be a commit of 40 hex"
    ):
        bring("a/b", "main", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere")
    with pytest.raises(UserError) as error:
        bring("a/b", "0" * 40, False)
    assert str(error.value) == (
        "autoencoder.source: a/b at 000000000000: config.json could not be downloaded (HF_HUB_OFFLINE is set, and the cache in "
        "/nowhere has none); go online, or download it elsewhere and name that directory"
    )


def test_weights_that_are_pickled_or_split_are_refused(tmp_path: Path) -> None:
    autoencoder.save(tmp_path, autoencoder.build(4, 1, 4, [8, 16], 1))
    weights = tmp_path / autoencoder.WEIGHTS
    pickled = tmp_path / "diffusion_pytorch_model.bin"
    pickled.write_bytes(pickle.dumps(print))
    index = tmp_path / f"{autoencoder.WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"encoder.conv_in.weight": pickled.name}}))
    with pytest.raises(ConfigError) as error:
        autoencoder.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: holds diffusion_pytorch_model.safetensors.index.json, weights in several files, which can't be "
        "checked; remove it"
    )
    index.unlink()
    autoencoder.load(tmp_path)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"no diffusion_pytorch_model.safetensors; an autoencoder's folder holds"):
        autoencoder.load(tmp_path)


def test_models_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"can't be read as Classifier \(.*No such file.*\); delete the folder and run"
    ):
        load_model(tmp_path, Classifier)
    (tmp_path / "config.json").write_text('{"channels": 1, "classes": 10}')
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigError, match=r"can't be read as Classifier \("):
        load_model(tmp_path, Classifier)
    with pytest.raises(ConfigError, match=r"no diffusion_pytorch_model.safetensors; an autoencoder's folder holds"):
        autoencoder.load(tmp_path)
    (tmp_path / autoencoder.WEIGHTS).write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigError, match=r"_class_name is None; accepted are AutoencoderKL and AutoencoderTiny"):
        autoencoder.load(tmp_path)


def test_bundled_weights_serve_only_the_data_they_were_fitted_on(tiny: Path) -> None:
    with arrays.reading(tiny / "data/images.h5", IMAGES_FORMAT) as images, pytest.raises(UserError) as error:
        check_bundled("classifier", ROOT / "lfm/pretrained/classifier", images)
    assert str(error.value).startswith(
        "classifier.source is 'bundled', but those weights were fitted on other images than this training split "
        "(dataset digits, sha256 "
    )
    assert str(error.value).endswith("; set classifier.source: train in params.yaml")


def test_a_device_that_is_not_there_is_told(tiny: Path) -> None:
    result = command("python", "-m", "stages.evaluate", cwd=tiny, LFM_DEVICE="tpu")
    assert result.returncode == 2
    assert result.stderr.startswith("error: LFM_DEVICE: 'tpu' can't be used here (") and result.stderr.count("\n") == 1


def test_stages_run_in_the_projects_root_alone(tiny: Path, tmp_path: Path) -> None:
    result = command("python", "-m", "stages.fetch", cwd=tmp_path, PYTHONPATH=str(tiny))
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path}: stages run in the project's root; run `cd {tiny}` first\n"

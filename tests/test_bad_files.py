"""Every artifact, damaged in every way: the stage that reads it says so in one line, and runs nothing that it holds."""

import fcntl
import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from safetensors.torch import load_file, save_file

from lfm.flow.schedule import SCHEDULES
from pipeline.artifacts.files import write_json
from pipeline.errors import UserError
from pipeline.machine.scratch import Scratch
from tests.conftest import Malicious, edited, set_params

IMAGES, LATENTS, SAMPLES = "data/images.h5", "data/latents.h5", "data/samples.h5"
PROGRESS, FLOW_JSON = "models/flow/progress.h5", "models/flow/flow.json"
FLOW, CLASSIFIER = "models/flow/model.safetensors", "models/classifier/model.safetensors"
AUTOENCODER, TABLES = "models/autoencoder/diffusion_pytorch_model.safetensors", "reports/tables"
READERS = {
    IMAGES: "encode", LATENTS: "likelihood", SAMPLES: "evaluate", PROGRESS: "sample", FLOW_JSON: "sample",
    "models/flow/config.json": "likelihood", FLOW: "likelihood",
    "models/flow/record.json": "evaluate", "models/flow/curves.csv": "report", "models/flow/validation.csv": "report",
    "models/classifier/config.json": "evaluate", CLASSIFIER: "evaluate",
    "models/autoencoder/config.json": "encode", AUTOENCODER: "encode",
    "reports/likelihood.json": "evaluate", "reports/metrics.json": "report", f"{TABLES}/comparisons.csv": "report",
    f"{TABLES}/conditions.csv": "report", f"{TABLES}/frechet_by_size.csv": "report", f"{TABLES}/accuracy.csv": "report",
    f"{TABLES}/nearest.csv": "report", f"{TABLES}/generated.csv": "report", f"{TABLES}/test.csv": "report",
    "params.yaml": "encode",
}  # fmt: skip


@pytest.fixture
def spoil(workspace: Path) -> Iterator[Callable[[str], Path]]:
    """The path of an artifact that the test may spoil."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(edited(Path(name)))


@pytest.mark.parametrize("how", ["a pickle", "empty", "a directory", "missing", "junk", "nested"])
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_another_kind_is_named(
    spoil: Callable[[str], Path], error_of: Callable[[str], str], tmp_path: Path, name: str, how: str
) -> None:
    path = spoil(name)
    path.unlink()
    if how == "a directory":
        path.mkdir()
    elif how != "missing":
        path.write_bytes({
            "a pickle": pickle.dumps(Malicious(tmp_path / "owned")), "empty": b"",
            "junk": bytes(range(256)) * 40, "nested": b"[" * 100_000,
        }[how])  # fmt: skip
    error = error_of(READERS[name])
    assert any(part in error for part in (name, str(path.parent))), error
    assert not (tmp_path / "owned").exists()


def h5(edit: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "a") as file:
            edit(file)

    return change


def array(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """The array as `change` makes it, stored as ours are."""

    def edit(file: h5py.File) -> None:
        value = change(file[name][()])
        del file[name]
        file.create_dataset(name, data=value, chunks=value.shape, fletcher32=True)

    return h5(edit)


def element(index: int, value: float) -> Callable[[Any], Any]:
    """An array with another element in the place of one."""

    def change(values: Any) -> Any:
        values[index] = value
        return values

    return change


def attribute(name: str, value: Any) -> Callable[[Path], None]:
    return h5(lambda file: file.attrs.__setitem__(name, value))


def leaf(name: str, value: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def weights(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], None]:
    """The file after `change` of its tensors, given the first one's name too."""

    def edit(path: Path) -> None:
        tensors = load_file(path)
        change(tensors, min(tensors))
        save_file(tensors, path)

    return edit


NAN = weights(lambda tensors, first: tensors.update({first: torch.full_like(tensors[first], float("nan"))}))
CUT = weights(lambda tensors, first: tensors.pop(first))


def copied(source: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(Path(source).read_bytes())


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


# Who reads it, what is changed in which file, and the words that the line must hold beside the file or folder.
CASES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("encode", IMAGES, attribute("format", "lfm-images/2"), "format"),
    ("train", LATENTS, attribute("format", "lfm-latents/2"), "format"),
    ("train", LATENTS, attribute("format", [1, 2]), "attribute 'format'"),
    ("train", LATENTS, attribute("classes", "ten"), "attribute 'classes'"),
    ("train", LATENTS, h5(lambda f: f.attrs.__delitem__("dataset")), "attribute 'dataset'"),
    ("encode", IMAGES, array("train/images", lambda v: v.astype("float32")), "array 'train/images'"),
    ("encode", IMAGES, array("train/images", lambda v: v[:, 0]), "array 'train/images'"),
    ("encode", IMAGES, array("test/labels", lambda v: v[:5]), "array 'test/labels'"),
    ("encode", IMAGES, array("test/labels", element(0, 10)), "array 'test/labels'"),
    ("train", LATENTS, array("train/mean", element(3, float("nan"))), "array 'train/mean'"),
    ("sample", PROGRESS, array("latents", lambda v: v.astype("float64")), "array 'latents'"),
    ("sample", PROGRESS, attribute("format", "lfm-progress/2"), "format"),
    ("sample", PROGRESS, array("steps", lambda v: v[:2]), "array 'latents'"),
    ("evaluate", SAMPLES, attribute("format", "lfm-samples/0"), "format"),
    ("evaluate", SAMPLES, array("generated/images", lambda v: v / 255), "array 'generated/images'"),
    ("report", SAMPLES, array("reconstructed/test", lambda v: v[:200]), "array 'reconstructed/test'"),
    ("evaluate", SAMPLES, attribute("nfe", "many"), "attribute 'nfe'"),
    *((s, SAMPLES, attribute("dataset", "mnist"), "data set 'mnist'") for s in ("evaluate", "report")),
    *((s, SAMPLES, array("generated/labels", lambda v: (v + 1) % 10), "other test images") for s in ("evaluate", "report")),
    ("report", f"{TABLES}/test.csv", lambda path: path.write_text("".join(path.open().readlines()[:-1])), "other test images"),
    ("report", f"{TABLES}/generated.csv", lambda path: path.write_text("".join(path.open().readlines()[:-1])), "other test images"),
    ("sample", FLOW_JSON, leaf("path", "straight"), "'path'"),
    ("sample", FLOW_JSON, leaf("sigma_min", "x"), "'sigma_min'"),
    ("sample", FLOW_JSON, leaf("scale_mean", "x"), "'scale_mean'"),
    ("sample", FLOW_JSON, leaf("scale_std", [0.0] * 8), "'scale_std'"),
    ("sample", FLOW_JSON, leaf("image_height", 28.5), "'image_height'"),
    ("sample", FLOW_JSON, leaf("autoencoder_sha256", None), "'autoencoder_sha256'"),
    ("evaluate", "models/flow/record.json", leaf("validation_loss", float("nan")), "'validation_loss'"),
    ("evaluate", "reports/likelihood.json", leaf("bits_per_dim", "x"), "'bits_per_dim'"),
    ("report", "reports/metrics.json", leaf("psnr", []), "'psnr'"),
    ("report", f"{TABLES}/nearest.csv", text("percent,test,reconstructed,generated\n1\n"), "rows"),
    ("report", f"{TABLES}/nearest.csv", text("percent,test\n1,2\n"), "'reconstructed'"),
    ("report", "models/flow/curves.csv", text("step,train_loss\n1,x\n"), "'x'"),
    ("report", f"{TABLES}/comparisons.csv", text("images,fd_sd\ngenerated,1\n"), "'fd'"),
    ("report", f"{TABLES}/conditions.csv", text("kind,name,what,figure,limit\ncondition,a,b,c,1\n"), "'c'"),
    ("report", f"{TABLES}/test.csv", text("label,recognised,log_odds,nearest_training,distance\n1,1,x,1,1\n"), "'x'"),
    ("report", f"{TABLES}/accuracy.csv", text("test\n1\n"), "'label'"),
    ("likelihood", FLOW, NAN, "not finite"),
    ("likelihood", FLOW, CUT, "Missing key"),
    ("likelihood", FLOW, copied(CLASSIFIER), "Missing key"),
    ("evaluate", CLASSIFIER, copied(FLOW), "Missing key"),
    ("encode", AUTOENCODER, copied(CLASSIFIER), "weights"),
    ("encode", AUTOENCODER, NAN, "not finite"),
    ("encode", AUTOENCODER, CUT, "1 weights"),
    ("likelihood", "models/flow/config.json", leaf("block", "mamba"), "mamba"),
    ("likelihood", "models/flow/config.json", leaf("patch_size", 0), "Transformer"),
    ("evaluate", "models/classifier/config.json", leaf("classes", 11), "size mismatch"),
    ("encode", "models/autoencoder/config.json", leaf("block_out_channels", 3), "weights"),
    ("encode", "models/autoencoder/config.json", leaf("_class_name", ["x"]), "AutoencoderKL"),
    ("sample", LATENTS, attribute("autoencoder_sha256", "0" * 64), "000000000000…"),
    ("likelihood", LATENTS, attribute("autoencoder_sha256", "0" * 64), "000000000000…"),
    ("evaluate", "models/classifier/record.json", leaf("train_sha256", "0" * 64), "000000000000…"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "name", "change", "words"), CASES)
def test_a_file_with_other_contents_is_named(
    spoil: Callable[[str], Path], error_of: Callable[[str], str],
    stage: str, name: str, change: Callable[[Path], object], words: str,
) -> None:  # fmt: skip
    change(spoil(name))
    error = error_of(stage)
    assert error.startswith((name, str(Path(name).parent), "samples")) and words in error


def test_a_file_that_another_process_writes_is_not_to_be_deleted(
    workspace: Path, error_of: Callable[[str], str]
) -> None:
    with Path(IMAGES).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does while it writes
        error = error_of("encode")
    assert (
        error.startswith(f"{IMAGES}: ") and "another process has it open for writing" in error and "delete" not in error
    )


def test_json_takes_no_number_that_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"a\.json: a value is not finite"):
            write_json(path, {"deep": [{"er": value}]})
    assert not path.exists()


def test_a_checkpoint_that_is_a_pickle_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = pickle.dumps(Malicious(tmp_path / "owned"))
    path = tmp_path / f"step-0000000001.{hashlib.sha256(content).hexdigest()}.safetensors"
    path.write_bytes(content)
    assert Scratch(tmp_path, "train").read(path) is None
    assert "left out" in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stage", "variable", "value"),
    [("evaluate", "LFM_DEVICE", value) for value in ("meta", "gpu", "cuda:99")]
    + [("encode", "LFM_PROCESSES", value) for value in ("0", "many")]
    + [("encode", "RANK", value) for value in ("-1", "first")],
)
def test_a_bad_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, error_of: Callable[[str], str], stage: str, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert re.match(rf"{variable}\b.*'{value}'", error_of(stage))


@pytest.mark.parametrize(
    ("stage", "leaves", "words"),
    [
        ("evaluate", {"evaluate__kid_blocks": 600}, "evaluate.kid_blocks is 600"),
        ("train", {"model__patch_size": 3}, "model.patch_size is 3"),
        ("encode", {"encode__batch_size": 10**9}, "lower batch_size"),  # more memory than there is
    ],
)
def test_parameters_that_contradict_the_data_are_named(
    spoil: Callable[[str], Path], error_of: Callable[[str], str], stage: str, leaves: dict[str, Any], words: str
) -> None:
    spoil("params.yaml")
    set_params(Path(), **leaves)
    assert words in error_of(stage)


@pytest.mark.parametrize(("diverges", "steps", "last"), [(60, 400, "step-0000000050"), (0, 60, None)])
def test_a_diverging_training_stops_and_its_last_good_checkpoint_stays(
    spoil: Callable[[str], Path], error_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch,
    diverges: int, steps: int, last: str | None,
) -> None:  # fmt: skip
    # Then the learning rate is far too large: Adam moves every weight by about a million, whatever the gradient.
    monkeypatch.setitem(SCHEDULES, "constant", lambda step, steps, warmup: 1e-3 if step < diverges else 1e6)
    spoil("params.yaml")
    set_params(Path(), train__learning_rate=1.0, train__steps=steps, train__gradient_clip=None,
               train__schedule="constant", train__precision="float32",
               runtime__checkpoint_every=50 if last else 500)  # fmt: skip
    before = Path(FLOW).read_bytes()
    error = error_of("train")
    assert error.startswith("train: the loss is ") and f" at step {100 if last else 50}" in error
    assert error.endswith("lower train.learning_rate") and ("step 50 stays" in error) == bool(last)
    saved = sorted(Path(".dvc/tmp/lfm/train").glob("*/step-*"))
    assert [path.name.split(".")[0] for path in saved] == ([last] if last else [])
    assert all(Scratch(path.parent, "train").read(path) for path in saved) and Path(FLOW).read_bytes() == before


def test_a_flow_that_does_not_find_its_way_back_from_noise_is_refused(
    spoil: Callable[[str], Path], error_of: Callable[[str], str]
) -> None:
    path = spoil(FLOW)
    weights = load_file(path)
    weights["final.weight"] *= 1e4  # a velocity that turns within less than the steps of the solver
    save_file(weights, path, {"format": "pt"})
    error = error_of("sample")
    assert error.startswith("sample.inversion_steps is 4: ") and "moved by" in error

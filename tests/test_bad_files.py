"""Every artifact, damaged in every way: the stage that reads it says so in one line, and runs nothing that it holds."""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lfm.flow.schedule import SCHEDULES
from pipeline import run as cli
from pipeline.machine.scratch import Scratch
from pipeline.params import Loader, Params
from tests.conftest import ROOT
from tests.test_pipeline import STAGES
from tools.workspace import apply

REMAKE = "delete {name} and run `dvc repro` to make or restore it"
DELETE = "delete it and run `dvc repro`"
IMAGES, LATENTS, SAMPLES = "data/images.h5", "data/latents.h5", "data/samples.h5"
PROGRESS, FLOW_JSON = "models/flow/progress.h5", "models/flow/flow.json"
READERS = {
    IMAGES: "encode", LATENTS: "likelihood", SAMPLES: "evaluate", PROGRESS: "sample", FLOW_JSON: "sample",
    "models/flow/config.json": "likelihood", "models/flow/model.safetensors": "likelihood",
    "models/flow/record.json": "evaluate", "models/flow/curves.csv": "report", "models/flow/validation.csv": "report",
    "models/classifier/config.json": "evaluate", "models/classifier/model.safetensors": "evaluate",
    "models/autoencoder/config.json": "encode", "models/autoencoder/diffusion_pytorch_model.safetensors": "encode",
    "reports/likelihood.json": "evaluate", "reports/metrics.json": "report", "reports/comparisons.csv": "report",
    "reports/conditions.csv": "report", "reports/frechet_by_size.csv": "report", "reports/accuracy.csv": "report",
    "reports/nearest.csv": "report", "reports/generated.csv": "report", "reports/test.csv": "report",
    "params.yaml": "encode",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of this file's own in which everything has run; each test puts back what it changes."""
    target = tmp_path_factory.mktemp("bad") / "files"
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("cache"))
    return target


@pytest.fixture
def workspace(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setattr(cli, "__file__", str(place / "stages/cli.py"))
    monkeypatch.setenv("LFM_DEVICE", "cpu")
    shutil.rmtree(place / ".dvc/tmp/lfm", ignore_errors=True)
    return place


@pytest.fixture
def spoil(workspace: Path) -> Iterator[Callable[[str], Path]]:
    """The path of an artifact that the test may spoil."""
    changed: dict[Path, bytes] = {}

    def take(name: str) -> Path:
        changed[workspace / name] = (workspace / name).read_bytes()
        return Path(name)

    yield take
    for path, before in changed.items():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(before)


def refused(stage: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a stage says that must end with exit code 2, one line, and nothing half-made."""
    main: Callable[[Params], None] = import_module(f"stages.{stage}").main
    with pytest.raises(SystemExit) as ended:
        cli.run(main, *STAGES[stage]["params"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and said.startswith("error: ")
    assert not [p for folder in ("data", "models", "reports") for p in Path(folder).rglob("*.part")]
    return said.removeprefix("error: ")


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["a pickle", "empty", "a directory", "missing", "junk", "nested"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_such_file_is_told(
    spoil: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, how: str
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
    said = refused(READERS[name], capsys)
    assert any(part in said for part in (name, str(path.parent))), said
    assert len(said) < 700 and not (tmp_path / "owned").exists()


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


def attribute(name: str, value: Any) -> Callable[[Path], None]:
    return h5(lambda file: file.attrs.__setitem__(name, value))


def leaf(name: str, value: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def endless(values: Any) -> Any:
    values[3] = float("nan")
    return values


def label(values: Any) -> Any:
    values[0] = 10
    return values


def poisoned(path: Path) -> None:
    tensors = load_file(path)
    first = sorted(tensors)[0]
    save_file(tensors | {first: torch.full_like(tensors[first], float("nan"))}, path)


def cut(path: Path) -> None:
    tensors = load_file(path)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, path)


def another(folder: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes((ROOT / "lfm/pretrained" / folder).read_bytes())


def another_flow(path: Path) -> None:
    path.write_bytes((path.parent.parent / "flow/model.safetensors").read_bytes())


def text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


CHANNELS = yaml.load((ROOT / "params.yaml").read_text(), Loader)["autoencoder"]["latent_channels"]  # and presets/tiny's
CASES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("encode", IMAGES, attribute("format", "lfm-images/2"), f"its format is 'lfm-images/2', not 'lfm-images/1'; {REMAKE}"),
    ("train", LATENTS, attribute("format", "lfm-latents/2"),
     f"its format is 'lfm-latents/2', not 'lfm-latents/1'; {REMAKE}"),
    ("train", LATENTS, attribute("format", [1, 2]), f"attribute 'format' is no single number or string; {REMAKE}"),
    ("train", LATENTS, attribute("classes", "ten"), f"attribute 'classes' is 'ten', which is no int; {REMAKE}"),
    ("train", LATENTS, h5(lambda f: f.attrs.__delitem__("dataset")), f"no attribute 'dataset'; {REMAKE}"),
    ("encode", IMAGES, array("train/images", lambda v: v.astype("float32")),
     f"array 'train/images' is float32 (1197, 1, 28, 28), not uint8 (train, C, H, W); {REMAKE}"),
    ("encode", IMAGES, array("train/images", lambda v: v[:, 0]),
     f"array 'train/images' is uint8 (1197, 28, 28), not uint8 (train, C, H, W); {REMAKE}"),
    ("encode", IMAGES, array("test/labels", lambda v: v[:5]),
     f"array 'test/labels' is uint8 (5,), not uint8 (test = 300); {REMAKE}"),
    ("encode", IMAGES, array("test/labels", label), f"array 'test/labels' holds label 10, but there are 10 classes; {REMAKE}"),
    ("train", LATENTS, array("train/mean", endless), f"array 'train/mean' holds values that are not finite; {REMAKE}"),
    ("sample", PROGRESS, array("latents", lambda v: v.astype("float64")),
     f"array 'latents' is float64 (3, 16, {{channels}}, 4, 4), not float32 (times = 3, noises, c, h, w); {REMAKE}"),
    ("sample", PROGRESS, attribute("format", "lfm-progress/2"),
     f"its format is 'lfm-progress/2', not 'lfm-progress/1'; {REMAKE}"),
    ("sample", PROGRESS, array("steps", lambda v: v[:2]),
     f"array 'latents' is float32 (3, 16, {{channels}}, 4, 4), not float32 (times = 2, noises, c, h, w); {REMAKE}"),
    ("evaluate", SAMPLES, attribute("format", "lfm-samples/0"),
     f"its format is 'lfm-samples/0', not 'lfm-samples/1'; {REMAKE}"),
    ("evaluate", SAMPLES, array("generated/images", lambda v: v / 255),
     f"array 'generated/images' is float64 (300, 1, 28, 28), not uint8 (test, C, H, W); {REMAKE}"),
    ("report", SAMPLES, array("reconstructed/test", lambda v: v[:200]),
     f"array 'reconstructed/test' is uint8 (200, 1, 28, 28), not uint8 (test = 300, C = 1, H = 28, W = 28); {REMAKE}"),
    ("evaluate", SAMPLES, attribute("nfe", "many"), f"attribute 'nfe' is 'many', which is no float; {REMAKE}"),
    ("evaluate", SAMPLES, attribute("dataset", "mnist"),
     "of data set 'mnist', but data/images.h5 is of 'digits'; run `dvc repro`"),
    ("sample", FLOW_JSON, leaf("path", "straight"), f"'path' is 'straight', which can't be; {DELETE}"),
    ("sample", FLOW_JSON, leaf("sigma_min", "x"), f"'sigma_min' is 'x', which can't be; {DELETE}"),
    ("sample", FLOW_JSON, leaf("scale_mean", "x"), f"'scale_mean' is 'x', which can't be; {DELETE}"),
    ("sample", FLOW_JSON, leaf("scale_std", [0.0] * 8),
     f"'scale_std' is [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, ...], which can't be; {DELETE}"),
    ("sample", FLOW_JSON, leaf("image_height", 28.5), f"'image_height' is 28.5, which can't be; {DELETE}"),
    ("sample", FLOW_JSON, leaf("autoencoder_sha256", None), f"'autoencoder_sha256' is None, which can't be; {DELETE}"),
    ("evaluate", "models/flow/record.json", leaf("validation_loss", float("nan")),
     f"'validation_loss' is nan, which can't be; {DELETE}"),
    ("evaluate", "reports/likelihood.json", leaf("bits_per_dim", "x"), f"'bits_per_dim' is 'x', which can't be; {DELETE}"),
    ("report", "reports/metrics.json", leaf("psnr", []), f"'psnr' is [], which can't be; {DELETE}"),
    ("report", "reports/nearest.csv", text(b"percent,test,reconstructed,generated\n1\n"),
     f"holds no rows, or one of another length than its header; {DELETE}"),
    ("report", "reports/nearest.csv", text(b"percent,test\n1,2\n"), f"has no column 'reconstructed'; {DELETE}"),
    ("report", "models/flow/curves.csv", text(b"step,train_loss\n1,x\n"),
     f"not all numbers (could not convert string to float: 'x'); {DELETE}"),
    ("report", "reports/comparisons.csv", text(b"images,fd_sd\ngenerated,1\n"), f"has no column 'fd'; {DELETE}"),
    ("report", "reports/conditions.csv", text(b"kind,name,what,figure,limit\ncondition,a,b,c,1\n"),
     f"not all numbers (could not convert string to float: 'c'); {DELETE}"),
    ("report", "reports/test.csv", text(b"label,recognised,log_odds,nearest_training,distance\n1,1,x,1,1\n"),
     "not all numbers (could not convert string to float: 'x'); " + DELETE),
    ("report", "reports/accuracy.csv", text(b"test\n1\n"), f"has no column 'label'; {DELETE}"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "name", "change", "message"), CASES)
def test_what_a_file_must_not_hold_is_told(
    spoil: Callable[[str], Path], capsys: pytest.CaptureFixture[str],
    stage: str, name: str, change: Callable[[Path], object], message: str,
) -> None:  # fmt: skip
    change(spoil(name))
    assert refused(stage, capsys) == f"{name}: {message.format(name=name, channels=CHANNELS)}"


@pytest.mark.parametrize(
    ("stage", "name", "change", "words"),
    [
        ("likelihood", "models/flow/model.safetensors", poisoned, "is not finite"),
        ("likelihood", "models/flow/model.safetensors", cut, "Missing key"),
        ("likelihood", "models/flow/model.safetensors", another("classifier/model.safetensors"), "Missing key"),
        ("evaluate", "models/classifier/model.safetensors", another_flow, "Missing key"),
        (
            "encode",
            "models/autoencoder/diffusion_pytorch_model.safetensors",
            another("classifier/model.safetensors"),
            "weights are missing or too many",
        ),
        ("likelihood", "models/flow/config.json", leaf("block", "mamba"), "KeyError: 'mamba'"),
        ("likelihood", "models/flow/config.json", leaf("patch_size", 0), "ZeroDivisionError"),
        ("evaluate", "models/classifier/config.json", leaf("classes", 11), "size mismatch"),
        ("encode", "models/autoencoder/diffusion_pytorch_model.safetensors", poisoned, "is not finite"),
        ("encode", "models/autoencoder/diffusion_pytorch_model.safetensors", cut, "1 weights are missing or too many"),
        ("encode", "models/autoencoder/config.json", leaf("block_out_channels", 3), "the weights can't be read"),
        (
            "sample",
            LATENTS,
            attribute("autoencoder_sha256", "0" * 64),
            "made by another autoencoder (000000000000…)",
        ),
        (
            "likelihood",
            LATENTS,
            attribute("autoencoder_sha256", "0" * 64),
            "made by another autoencoder (000000000000…)",
        ),
        (
            "evaluate",
            "models/classifier/record.json",
            leaf("train_sha256", "0" * 64),
            "fitted on other images (000000000000…)",
        ),
        ("encode", "models/autoencoder/config.json", leaf("_class_name", ["x"]), "accepted are AutoencoderKL and"),
    ],
)
def test_another_models_weights_are_told(
    spoil: Callable[[str], Path], capsys: pytest.CaptureFixture[str],
    stage: str, name: str, change: Callable[[Path], object], words: str,
) -> None:  # fmt: skip
    change(spoil(name))
    said = refused(stage, capsys)
    assert said.startswith(str(Path(name).parent)) and words in said


def test_a_checkpoint_that_is_a_pickle_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    content = pickle.dumps(Malicious(tmp_path / "owned"))
    path = tmp_path / f"step-0000000001.{hashlib.sha256(content).hexdigest()}.safetensors"
    path.write_bytes(content)
    assert Scratch(tmp_path, "train").read(path) is None
    assert "left out" in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stage", "variable", "value", "message"),
    [
        ("evaluate", "LFM_DEVICE", "meta",
         "LFM_DEVICE: 'meta' can't be used here (neither a CPU nor a CUDA GPU); unset it or choose cpu or cuda"),
        ("encode", "LFM_PROCESSES", "0",
         "LFM_PROCESSES is '0'; it must be a number from 1 to 1024: one a GPU is a good choice"),
        ("encode", "LFM_PROCESSES", "many",
         "LFM_PROCESSES is 'many'; it must be a number from 1 to 1024: one a GPU is a good choice"),
    ],
)  # fmt: skip
def test_a_bad_environment_is_told(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    stage: str, variable: str, value: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    assert refused(stage, capsys) == message


@pytest.mark.parametrize("wanted", ["cuda", "cuda:99", "gpu"])
def test_a_gpu_that_is_demanded_and_not_there_is_told(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    if wanted == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("LFM_DEVICE", wanted)
    said = refused("likelihood", capsys)
    assert re.fullmatch(rf"LFM_DEVICE: '{wanted}' can't be used here \(.+\); unset it or choose cpu or cuda", said)


def with_params(path: Path, **leaves: Any) -> None:
    tree = yaml.load(path.read_text(), Loader)
    changes = {key.replace("__", "."): value for key, value in leaves.items()}
    path.write_text(yaml.safe_dump(apply(tree, changes, "test"), sort_keys=False))


def test_params_that_contradict_the_data_are_told(
    spoil: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with_params(path := spoil("params.yaml"), evaluate__kid_blocks=200)
    assert refused("evaluate", capsys) == "evaluate.kid_blocks is 200; with this many images it must be at most 150"
    with_params(path, model__patch_size=3)
    assert refused("train", capsys) == (
        "model.patch_size is 3, which does not divide latents of 4×4; choose one of [1, 2, 4]"
    )


def test_what_takes_more_memory_than_there_is_is_told(
    spoil: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with_params(spoil("params.yaml"), encode__batch_size=10**9)
    said = refused("encode", capsys)
    assert said.startswith("not enough memory (") and "lower batch_size" in said


def exploding(step: int, steps: int, warmup: int) -> float:
    """A learning rate far too large after 60 steps: Adam moves every weight by about a million, whatever the gradient."""
    return 1e-3 if step < 60 else 1e6


def test_a_diverging_training_stops_and_keeps_its_last_good_checkpoint(
    spoil: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEDULES, "constant", exploding)
    with_params(spoil("params.yaml"), train__learning_rate=1.0, train__steps=400, train__gradient_clip=None,
                train__schedule="constant", runtime__checkpoint_every=50, train__precision="float32")  # fmt: skip
    before = Path("models/flow/model.safetensors").read_bytes()
    said = refused("train", capsys)
    assert re.fullmatch(
        r"train: the loss is \S+ at step 100, and began with \d\S* \(the checkpoint of step 50 stays\); "
        r"lower train.learning_rate",
        said,
    )
    kept = sorted(Path(".dvc/tmp/lfm/train").glob("*/step-*"))
    assert [path.name.split(".")[0] for path in kept] == ["step-0000000050"]
    assert Scratch(kept[0].parent, "train").read(kept[0])
    assert Path("models/flow/model.safetensors").read_bytes() == before


def test_a_training_that_diverges_before_its_curve_begins_stops_too(
    spoil: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCHEDULES, "constant", lambda step, steps, warmup: 1e6)
    with_params(spoil("params.yaml"), train__learning_rate=1.0, train__steps=60, train__gradient_clip=None,
                train__schedule="constant", train__precision="float32")  # fmt: skip
    assert re.fullmatch(
        r"train: the loss is \S+ at step 50, and began with \d\S* \(there was no checkpoint yet\); "
        r"lower train.learning_rate",
        refused("train", capsys),
    )

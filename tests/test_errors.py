"""What a user reads when something is wrong: one line that names the key or file, the value, and the way out.

The exact words of all these errors are in tests/golden/errors.txt. To change them on purpose:
`LFM_UPDATE_GOLDEN=1 pytest -n 0 tests/test_errors.py`, and read the diff.
"""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lfm.errors import ConfigError
from lfm.nets import autoencoder
from lfm.nets.classifier import Classifier
from lfm.nets.transformer import Transformer
from lfm.nets.weights import MODEL_FILES, load_model, save_model
from pipeline.artifacts import bundled, hdf5, images
from pipeline.artifacts.files import read_json
from pipeline.artifacts.hdf5 import ArrayFile, Format
from pipeline.errors import UserError
from pipeline.machine.publish import replacing
from pipeline.training.init import begin_with, init_folder
from stages.autoencoder import bring
from tests import test_data, test_hub, test_params, test_sources
from tests.conftest import ENVIRONMENT, ROOT, Case, Scene, command, write_noise

GOLDEN = ROOT / "tests/golden/errors.txt"
FOREIGN = (
    r"\((Unable|Can't|Not a gzip|Compressed|Expecting|Error while|No such file|image file|\[Errno).*?\)(?=[;,:]| and)"
)

# --- HDF5, folders, JSON, models ---------------------------------------------------------------------------------------

ARRAY = np.arange(4096, dtype=np.float32).reshape(64, 64)


def layout(name: str) -> Format:
    return Format(name, {}, {})


def store() -> Path:
    """A small file in the working directory."""
    path = Path("data/x.h5")
    path.parent.mkdir(exist_ok=True)
    with hdf5.writing(path) as file:
        file.add("train/images", ARRAY)
        file.attributes(format="test/1")
    return path


def in_store(
    edit: Callable[[Path], object] = lambda path: None,
    read: Callable[[ArrayFile], object] = lambda file: file.read("train/images"),
    format: str = "test/1",
) -> Case:
    def act(scene: Scene) -> None:
        edit(store())
        with hdf5.reading(Path("data/x.h5"), layout(format)) as file:
            read(file)

    return UserError, "data/x.h5", act


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(ARRAY.flat[1000:1010].tobytes())] ^= 1
    path.write_bytes(data)


def point_elsewhere(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["link"] = h5py.ExternalLink("other.h5", "/train/images")
        virtual = h5py.VirtualLayout((64, 64), np.float32)
        virtual[:] = h5py.VirtualSource("other.h5", "train/images", (64, 64))
        file.create_virtual_dataset("virtual", virtual)


def flow_json(text: str | None) -> Case:
    def act(scene: Scene) -> None:
        if text is not None:
            Path("flow.json").write_text(text, encoding="utf-8")
        read_json(Path("flow.json"), scale=float)

    return UserError, "flow.json", act


def load_autoencoder(edit: Callable[[Path], object]) -> Callable[[Scene], object]:
    def act(scene: Scene) -> None:
        autoencoder.save(scene.tmp, autoencoder.build(4, 1, 4, [8, 16], 1))
        (scene.tmp / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(print))
        edit(scene.tmp)
        autoencoder.load(scene.tmp)

    return act


def init_of(changes: dict[str, int]) -> Callable[[Scene], object]:
    """Begin with a flow of other sizes; without any, with one that no digest pins."""

    def act(scene: Scene) -> None:
        sizes = {"patch_size": 2, "block": "dit", "width": 32, "depth": 1, "heads": 2, "mlp_ratio": 4, "classes": 3}
        source = Transformer(4, 4, **sizes)  # type: ignore[arg-type]
        save_model(scene.tmp / "flow", source, source.config)
        if changes:
            begin_with("train", "flow", Transformer(4, 4, **sizes | changes), source.state_dict())  # type: ignore[arg-type]
        init_folder("train", str(scene.tmp / "flow"), None, "", MODEL_FILES)

    return act


def split_weights(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"encoder.conv_in.weight": "diffusion_pytorch_model.bin"}}
    (folder / f"{autoencoder.WEIGHTS}.index.json").write_text(json.dumps(index))


def other_files(folder: Path) -> None:
    (folder / autoencoder.CONFIG).write_text('{"channels": 1, "classes": 10}')
    (folder / autoencoder.WEIGHTS).write_bytes(b"\x80\x04pickle")


def endless(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / autoencoder.CONFIG).read_text())
        (folder / autoencoder.CONFIG).write_text(json.dumps(config | {name: 10**7}))

    return edit


def load_deep(scene: Scene) -> None:
    save_model(scene.tmp, Classifier(1, 10), {"channels": 1, "classes": 10, "depth": 10**7})
    load_model(scene.tmp, Classifier)


def load_classifier(scene: Scene) -> None:
    (scene.tmp / "config.json").write_text('{"channels": 1, "classes": 10}')
    (scene.tmp / "model.safetensors").write_bytes(b"\x80\x04pickle")
    load_model(scene.tmp, Classifier)


def directory(revision: str | None) -> Case:
    """An autoencoder of the user, pinned by this."""

    def act(scene: Scene) -> None:
        autoencoder.save(scene.tmp / "vae", autoencoder.build(4, 1, 4, [8, 16], 1))
        bring(str(scene.tmp / "vae"), revision, False)

    return UserError, "autoencoder.revision", act


def bundled_for_noise(scene: Scene) -> None:
    write_noise(4, 2)
    with hdf5.reading(Path("data/images.h5"), images.FORMAT) as file:
        bundled.check("classifier", ROOT / "lfm/pretrained/classifier", file)


ERRORS: dict[str, Case] = {
    "HDF5, another format": in_store(format="test/2"),
    "HDF5, missing": in_store(Path.unlink),
    "HDF5, cut": in_store(lambda path: path.write_bytes(path.read_bytes()[:5000])),
    "HDF5, a flipped bit": in_store(flip_a_bit),
    "HDF5, no such array": in_store(read=lambda file: file.read("test/images")),
    "HDF5, no such attribute": in_store(read=lambda file: file.attribute("classes")),
    "HDF5, external link": in_store(point_elsewhere, lambda file: file.read("link")),
    "HDF5, virtual array": in_store(point_elsewhere, lambda file: file.read("virtual")),
    "JSON, missing": flow_json(None),
    "JSON, cut": flow_json("{"),
    "JSON, a list": flow_json("[]"),
    "JSON, no such key": flow_json('{"a": 1}'),
    "init, no folder": (UserError, "train.init", lambda scene: init_folder("train", "no\0", None, "", ["x"])),
    "init, no digest": (UserError, "train.init_digest", init_of({})),
    "init, another size": (UserError, "train.init", init_of({"width": 64})),
    "init, a folder without weights": (
        ConfigError, "config.json", lambda scene: init_folder("train", str(scene.tmp), None, "", MODEL_FILES)),
    "autoencoder, no folder": (UserError, "autoencoder.source", lambda scene: bring(str(scene.tmp / "no"), None, False)),
    "autoencoder, no such user": (UserError, "autoencoder.source", lambda scene: bring("~nosuchuser/x", None, False)),
    "autoencoder, NUL": (UserError, "autoencoder.source", lambda scene: bring("a\0b", None, False)),
    "autoencoder, a long name": (UserError, "autoencoder.source", lambda scene: bring("x" * 5000, None, False)),
    "autoencoder, a folder upwards": (UserError, "autoencoder.source", lambda scene: bring("owner/name/../x", None, False)),
    "autoencoder, unpinned": directory(None),
    "autoencoder, pinned by other content": directory("0" * 64),
    "autoencoder, split weights": (ConfigError, "index.json", load_autoencoder(split_weights)),
    "autoencoder, pickle only": (ConfigError, autoencoder.WEIGHTS,
                                 load_autoencoder(lambda folder: (folder / autoencoder.WEIGHTS).unlink())),
    "autoencoder, endless layers": (ConfigError, "layers_per_block", load_autoencoder(endless("layers_per_block"))),
    "classifier, endless layers": (ConfigError, "depth", load_deep),
    "autoencoder, another model": (ConfigError, "_class_name", load_autoencoder(other_files)),
    "classifier, no files": (ConfigError, "Classifier", lambda scene: load_model(scene.tmp, Classifier)),
    "classifier, not safetensors": (ConfigError, "Classifier", load_classifier),
    "classifier, bundled for other images": (UserError, "classifier.source", bundled_for_noise),
}  # fmt: skip
ERRORS |= test_params.ERRORS | test_sources.ERRORS | test_data.ERRORS | test_hub.ERRORS


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_one_line_that_names_the_key_in_the_words_of_the_golden_file(name: str, scene: Scene) -> None:
    kind, key, act = ERRORS[name]
    with pytest.raises(kind) as error:
        act(scene)
    words = str(error.value)
    assert type(error.value) is kind and key in words and "\n" not in words
    words = re.sub(FOREIGN, "(…)", words)  # a library's own words
    words = words.replace(str(scene.tmp), "TMP").replace(scene.server.address, "SERVER")
    words = re.sub(r"\bline \d+\b", "line N", words)
    words = re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})\b", "HASH", words)
    golden = dict(line.split("\t") for line in GOLDEN.read_text(encoding="utf-8").splitlines())
    if os.environ.get("LFM_UPDATE_GOLDEN") == "1":
        lines = {known: golden[known] for known in golden if known in ERRORS} | {name: words}
        GOLDEN.write_text("".join(f"{n}\t{w}\n" for n, w in sorted(lines.items())), encoding="utf-8")
    else:
        assert words == golden.get(name, ""), "other words than in tests/golden/errors.txt; see the top of this file"


def test_the_golden_file_has_a_line_for_each_error_and_no_others() -> None:
    assert [line.split("\t")[0] for line in GOLDEN.read_text(encoding="utf-8").splitlines()] == sorted(ERRORS)


# --- what writes and reads well ----------------------------------------------------------------------------------------


def test_arrays_come_back_and_the_same_writes_give_the_same_bytes(scene: Scene) -> None:
    first, again = store(), Path("data/y.h5")
    with hdf5.writing(again) as copy:
        copy.create("train/images", (64, 64), np.float32)
        for start in (0, 40):
            copy.put("train/images", start, ARRAY[start : start + 40])
        copy.attributes(format="test/1")
    assert again.read_bytes() == first.read_bytes()
    with hdf5.reading(again, layout("test/1")) as file:
        assert np.array_equal(file.read("train/images"), ARRAY)
        assert np.array_equal(file.read("train/images", 3, 5), ARRAY[3:5])
        assert file.shape("train/images") == (64, 64)


@pytest.mark.parametrize(("name", "inside"), [("models/x", "models/x/{}"), ("data/x.h5", "data/x.h5")])
def test_a_failed_write_leaves_the_old_output_and_a_good_one_replaces_it(scene: Scene, name: str, inside: str) -> None:
    def contents() -> dict[str, str]:
        return {str(path): path.read_text() for path in Path(name).parent.rglob("*") if path.is_file()}

    def write(word: str, fail: bool = False) -> None:
        with replacing(Path(name)) as part:
            (part if Path(name).suffix else part / word).write_text(word)
            if fail:
                raise RuntimeError("stop")

    write("old")
    with pytest.raises(RuntimeError, match="stop"):
        write("new", fail=True)
    assert contents() == {inside.format("old"): "old"}
    write("new")
    assert contents() == {inside.format("new"): "new"}


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2>&1 >out | head -c 1"])
def test_progress_never_ends_a_stage(tmp_path: Path, stderr: str) -> None:
    code = "from pipeline.progress import *; say('a'); p = Progress(9, 'x', 'y'); p.advance(loss=1.0); say('b'); print('end')"
    script = f'set -o pipefail; python -c "{code}" {stderr if ">out" in stderr else ">out " + stderr}'
    result = command("bash", "-c", script, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (result.returncode, (tmp_path / "out").read_text()) == (0, "end\n")


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_a_signal_counts_whatever_became_of_stderr(tmp_path: Path, stderr: str) -> None:
    code = "import os; from pipeline.machine.process import ending_by_signal\nwith ending_by_signal(): os.kill(os.getpid(), 15)"
    assert (
        command("bash", "-c", f"exec python -c '{code}' {stderr}", cwd=tmp_path, PYTHONPATH=str(ROOT)).returncode == 143
    )


@pytest.mark.parametrize(
    ("before", "environment", "words"),
    [
        ("ulimit -v 300000", {}, r"torch can't be loaded \(.*ulimit -v"),
        ("", {"PYTHONSAFEPATH": "1"}, "TMP: .*; unset PYTHONSAFEPATH"),
        ("", {}, f"TMP: .*; run `cd {re.escape(str(ROOT))}` first"),
    ],
)
def test_an_odd_environment_is_told_before_a_stage_begins(
    tmp_path: Path, before: str, environment: dict[str, str], words: str
) -> None:
    script = f"{before}\nexec python -m stages.fetch"
    path = ENVIRONMENT["PATH"]  # a process of its own, which has such a limit from its start
    result = command("bash", "-c", script, cwd=tmp_path, PYTHONPATH=str(ROOT), PATH=path, **environment)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert re.match(f"error: {words}".replace("TMP", re.escape(str(tmp_path))), result.stderr)

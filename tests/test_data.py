"""Data sets besides MNIST: folders of images of any kind, through every stage, and the others in MNIST's four files."""

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h5py
import numpy as np
import pytest
import torchvision.datasets
from PIL import Image, ImageDraw

from lfm import sample_data
from lfm.errors import ConfigError
from lfm.evaluation.protocol import Settings, check_sizes, flat
from pipeline import run as runner
from pipeline.artifacts import hdf5, images, samples
from pipeline.artifacts.hdf5 import SPLITS
from pipeline.errors import UserError
from pipeline.page import gallery
from pipeline.params import Params
from pipeline.sources.datasets import Split, hold_out
from pipeline.sources.datasets import folder as load_folder
from pipeline.sources.folder import Pictures, survey
from stages import fetch, sample
from tests.conftest import ROOT, STAGES, Case, Digits, Scene, context, parameters, run_stage, set_params, write_noise
from tools import mnist_sample
from tools.workspace import make_workspace

IMAGES = Path("data/images.h5")
Edit = Callable[[Path], object]


def shapes(root: Path, each: int) -> Path:
    """Three classes of coloured shapes, 24×20, half of the files PNG and half JPEG."""
    for name, shape in {"square": "rectangle", "disc": "ellipse", "line": "line"}.items():
        g = np.random.default_rng(len(name))
        if each:
            (root / name).mkdir(parents=True)
        for i in range(each):
            image = Image.new("RGB", (24, 20))
            box, colour = g.integers((1, 1, 14, 12), (8, 7, 24, 20)).tolist(), g.integers(80, 256, 3).tolist()
            getattr(ImageDraw.Draw(image), shape)(box, fill=tuple(colour))
            image.save(root / name / f"{i:03d}.{('png', 'JPG')[i % 2]}")
    return root


def digest_of(root: Path) -> str:
    """What the error says is to be set."""
    with pytest.raises(UserError) as error:
        survey(str(root), None, 8, True, show=False)
    assert str(error.value).startswith("data.digest is None, ")
    return str(error.value).rpartition(" ")[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shapes(tmp_path / "shapes", 14)


def of_folder(root: Path, **leaves: Any) -> Params:
    data = {"dataset": "folder", "root": str(root), "digest": digest_of(root)} | leaves
    return parameters(**{f"data__{key}": value for key, value in data.items()})


def surveyed(root: Path) -> Pictures:
    """All images of a folder, 16×16."""
    return survey(str(root), digest_of(root), 16, False, show=False).splits[""][0]


# --- through every stage -----------------------------------------------------------------------------------------------


def test_a_folder_of_colour_images_goes_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, workspace = shapes(tmp_path / "shapes", 50), tmp_path / "workspace"
    make_workspace(ROOT, workspace, ROOT / "presets/tiny")
    data = {"dataset": "folder", "root": "../shapes", "digest": digest_of(root), "image_size": 40}
    set_params(workspace, **{f"data__{key}": value for key, value in data.items()}, model__patch_size=5)
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(runner, "__file__", str(workspace / "pipeline/run.py"))
    monkeypatch.setattr("pipeline.machine.fingerprint.START_NS", 2**63)  # the workspace is younger than this process
    for name in STAGES:
        run_stage(name)
    with hdf5.reading(IMAGES, images.FORMAT) as file:
        assert [file.shape(f"{split}/images") for split in SPLITS] == [(n, 3, 40, 40) for n in (108, 21, 21)]
        assert [np.bincount(file.read(f"{split}/labels")).tolist() for split in SPLITS] == [[36] * 3, [7] * 3, [7] * 3]
        assert file.attributes["class_names"] == "disc\nline\nsquare"
    with hdf5.reading(Path("data/samples.h5"), samples.FORMAT) as file:
        assert file.shape("generated/images") == (21, 3, 40, 40)
        assert file.shape("transfer/images") == (3, 3, 3, 40, 40)
    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert "21 images generated from noise" in page and "2 square" in page and "digit" not in page
    assert json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))["psnr"] > 0
    with Image.open("reports/pictures/samples.png") as picture:
        assert picture.mode == "RGB"


# --- what a folder may hold --------------------------------------------------------------------------------------------


def test_a_split_of_a_folder_is_drawn_from_each_class_alike_and_depends_on_the_seed_alone(folder: Path) -> None:
    first, again, other = (load_folder(of_folder(folder, seed=seed).data, False) for seed in (0, 0, 1))
    assert first.names == ["disc", "line", "square"]
    assert [len(split.labels) for split in (first.train, first.test)] == [36, 6]
    assert np.bincount(first.test.labels).tolist() == [2, 2, 2]
    assert first.test.images.names.tolist() == again.test.images.names.tolist() != other.test.images.names.tolist()
    assert not set(first.train.images.names) & set(first.test.images.names)
    assert len(set(first.train.labels[:9])) == 3, "rows are shuffled: the first ones are of all classes"
    image = np.asarray(first.test.images[:1])[0]
    assert image.shape == (3, 32, 32) and image.dtype == np.uint8


def test_a_folder_with_train_and_test_is_split_as_it_says(tmp_path: Path) -> None:
    shapes(tmp_path / "x/train", 5)
    shapes(tmp_path / "x/test", 2)
    data = load_folder(of_folder(tmp_path / "x").data, False)
    assert {name.split("/")[0] for name in data.test.images.names} == {"test"}
    train, validation = hold_out(data.train, data.test.labels, 0)
    assert [np.bincount(s.labels).tolist() for s in (train, validation, data.test)] == [[3] * 3, [2] * 3, [2] * 3]


def grey(value: int, mode: str = "L") -> Image.Image:
    return Image.new(mode, (30, 20), value)


def beside(mode: str, left: int | tuple[int, ...], right: int | tuple[int, ...]) -> Image.Image:
    """Two colours side by side."""
    image = Image.new(mode, (20, 20), right)
    image.paste(left, (0, 0, 10, 20))
    return image


def wide() -> Image.Image:
    """White in the middle square, grey beside it."""
    image = Image.new("L", (60, 20), 100)
    image.paste(255, (20, 0, 40, 20))
    return image


def photograph() -> Image.Image:
    """White above and black below, until its Exif turns it clockwise."""
    image = beside("L", 255, 0).rotate(-90)
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (grey(200), 1, [200, 200]),
        (grey(1, "1"), 1, [255, 255]),
        (grey(257 * 7, "I;16"), 1, [7, 7]),
        (beside("LA", (255, 0), (255, 255)), 1, [0, 255]),
        (wide(), 1, [255, 255]),
        (photograph(), 1, [0, 255]),
        (Image.new("RGB", (9, 9), (50, 50, 50)), 3, [50, 50]),
        (Image.new("P", (9, 9)), 3, [0, 0]),
    ],
    ids=["grey", "black and white", "16 bits", "transparent over black", "the middle", "turned", "colour", "palette"],
)
def test_images_of_any_kind_become_upright_squares(
    folder: Path, image: Image.Image, channels: int, expected: list[int]
) -> None:
    for path in filter(Path.is_file, folder.rglob("*.*")):
        path.unlink()
        wide().save(path.with_suffix(".png"))
    image.save(folder / "disc/x.png", exif=image.getexif())
    pictures = surveyed(folder)
    pixels = np.asarray(pictures[pictures.names == "disc/x.png"])[0]
    assert pictures.shape == (43, channels, 16, 16) and pixels.shape == (channels, 16, 16)
    assert (pixels[:, :, 2] == expected[0]).all() and (pixels[:, :, -3] == expected[1]).all()


def test_what_is_left_out_or_of_one_colour_is_logged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest_of(folder)
    for name in (".git", "__MACOSX"):
        (folder / name).mkdir()
    for name in ("disc/.DS_Store", "labels.csv", "disc/notes.txt", "beside.png"):
        (folder / name).write_bytes(b"x")
    assert digest_of(folder) == before
    log = capsys.readouterr().err
    assert "fetch: 'disc' holds 1 files" in log and "fetch: 1 images beside the folders of the classes" in log
    (folder / "disc/000.png").rename(folder / "disc/zzz.png")
    assert digest_of(folder) != before
    grey(7).save(folder / "disc/x.png")
    (folder / "disc/y.png").symlink_to("../line/000.png")  # a link within the folder is followed
    assert "disc/y.png" in surveyed(folder).names
    assert "fetch: 1 of 44 images are of a single colour each" in capsys.readouterr().err


def link(name: str, target: str) -> Edit:
    return lambda root: (root / name).symlink_to(target)


def splits(*names: str) -> Edit:
    return lambda root: [shapes(root / name, 3) for name in names]


def ink_on_transparent(root: Path) -> None:
    for path in root.rglob("*.png"):
        beside("LA", (0, 255), (0, 0)).save(path)


def other_classes(root: Path) -> None:
    splits("train")(root)
    (root / "test/disc").mkdir(parents=True)


def of(key: str, edit: Edit, images: int = 14, split: bool = False) -> Case:
    """A folder of three classes with so many images each, edited, then surveyed, and split too if asked for."""

    def act(scene: Scene) -> None:
        root = shapes(scene.tmp / "shapes", images)
        edit(root)
        if split:
            load_folder(of_folder(root).data, False)
        survey(str(root), None, 8, False, show=False)

    return UserError, key, act


def changed(key: str, meanwhile: bool) -> Case:
    def act(scene: Scene) -> None:
        p = of_folder(shapes(scene.tmp / "shapes", 14)).data
        data = load_folder(p, False)
        wide().save(scene.tmp / "shapes/disc/000.png")
        if not meanwhile:
            load_folder(p, False)
        np.asarray(data.train.images), np.asarray(data.test.images)

    return UserError, key, act


def nowhere(name: str) -> Case:
    return UserError, "data.root", lambda scene: survey(name, None, 8, False, show=False)


def read_names(names: str | int | None) -> dict[int, str]:
    """The names of two classes from a file that says this."""
    write_noise(4, 2)
    if names is not None:
        with h5py.File(IMAGES, "a") as raw:
            raw.attrs["class_names"] = names
    with hdf5.reading(IMAGES, images.FORMAT) as file:
        return gallery.class_names(file, IMAGES)


def figures(key: str, fewest: int, **changes: int) -> Case:
    return ConfigError, f"evaluate{key}", lambda _: check_sizes(Settings(**changes), fewest, np.zeros((50, 784)))


def named(names: str | int) -> Case:
    def act(scene: Scene) -> None:
        read_names(names)

    return UserError, "data/images.h5", act


ERRORS: dict[str, Case] = {
    "folder, link": of("'disc/x.png'", link("disc/x.png", "/etc/passwd")),
    "folder, link upwards": of("'disc/x'", link("disc/x", "../../../../../../../../etc")),
    "folder, link of a class": of("'more'", link("more", "..")),
    "folder, dangling link": of("'disc/x.png'", link("disc/x.png", "none.png")),
    "folder, pipe": of("'disc/x.png'", lambda root: os.mkfifo(root / "disc/x.png")),
    "folder, loop": of("'loop/disc'", link("loop", ".")),
    "folder, nested": of("'disc/small'", lambda root: (root / "disc/small").mkdir()),
    "folder, one class": of(
        "data.root", lambda root: [shutil.move(root / name, root.parent) for name in ("line", "disc")]
    ),
    "folder, odd name": of("'a\\nb'", lambda root: (root / "a\nb").mkdir()),
    "folder, beside train": of("'disc'", splits("train", "test")),
    "folder, training and testing": of("'training'", splits("training", "testing")),
    "folder, Train and test": of("'Train'", splits("Train", "test")),
    "folder, other classes in test": of("'line'", other_classes, 0),
    "folder, many broken images": of("'disc/000.png'", lambda root: [p.write_bytes(b"") for p in root.glob("disc/*")]),
    "folder, ink on transparent": of("data.root", ink_on_transparent, 1),
    "folder, content not pinned": of("data.digest", lambda root: None),
    "folder, class without images": of("data.root", lambda root: (root / "empty").mkdir(), split=True),
    "folder, class with few images": of("data.root", lambda root: (root / "line/000.png").unlink(), split=True),
    "folder, changed meanwhile": changed("'disc/000.png'", meanwhile=True),
    "folder, changed before": changed("data.digest", meanwhile=False),
    "folder, not there": nowhere("none"),
    "folder, no such user": nowhere("~nosuchuser/x"),
    "folder, NUL": nowhere("a\0b"),
    "classes, too few names": named("disc"),
    "classes, a number for names": named(3),
    "figures, 15 images": figures("", 15),
    "figures, blocks": figures(".kid_blocks", 19),
    "figures, neighbours": figures(".neighbours", 20, neighbours=20),
    "figures, components": figures(".pixel_components", 20),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_images_stop_the_stage_by_name_or_are_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "disc/001.JPG").read_bytes()
    (folder / "disc/y.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "line/x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    Image.new("1", (600, 600)).save(folder / "square/bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)
    digest = digest_of(folder)
    with pytest.raises(UserError, match=r"data\.skip_broken: true") as error:
        survey(str(folder), digest, 8, False, show=False)
    capsys.readouterr()
    content = survey(str(folder), digest, 8, True, show=False)
    log = capsys.readouterr().err
    for name, reason in (("disc/y.jpg", ""), ("line/x.png", "not an image in a known"), ("square/bomb.png", "360,000")):
        assert f"'{name}' ({reason}" in str(error.value) and f"fetch: '{name}' is broken: {reason}" in log
    assert content.broken == 3 and len(content.splits[""][1]) == 42


def test_large_images_are_averaged_before_their_pixels_are_compared() -> None:
    large = np.zeros((2, 3, 64, 64), np.uint8)
    large[:, :, :, ::2] = 200
    assert flat(large).shape == (2, 3 * 32 * 32) and np.allclose(flat(large), 100 / 255)
    assert flat(large[:, :1, :28, :28]).shape == (2, 784)


def test_pictures_are_made_of_so_many_classes_and_of_however_few_images() -> None:
    file, unused = cast(Any, SimpleNamespace(read=lambda name: np.arange(300).repeat(2) % 200)), cast(Any, None)
    assert sample.Stage(context("sample", parameters()), unused, file).pictured.tolist() == list(range(16))
    pictures = np.zeros((37, 1, 4, 4), np.uint8)
    assert [gallery.in_rows(pictures[:n]).shape[:2] for n in (37, 10, 7)] == [(3, 10), (1, 10), (1, 7)]


def test_every_class_has_a_name_or_none_has(scene: Scene) -> None:
    assert read_names(None) == {0: "0", 1: "1"}
    assert read_names("disc\nline") == {0: "0 disc", 1: "1 line"}


# --- MNIST's four files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "kind", "name"),
    [("fashion_mnist", "FashionMNIST", "Ankle boot"), ("kmnist", "KMNIST", "wo"), ("mnist", "MNIST", None)],
)
def test_data_sets_in_mnists_files_are_fetched_by_their_own_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, kind: str, name: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LFM_MIRROR", str(tmp_path))
    (tmp_path / dataset).mkdir()
    g, known = np.random.default_rng(0), []
    names = [file for file, _ in getattr(torchvision.datasets, kind).resources]
    for file, (rows, shape) in zip(names, [(60, (28, 28)), (60, ()), (20, (28, 28)), (20, ())], strict=True):
        sizes = np.array([rows, *shape], ">u4").tobytes()
        values = g.integers(0, 256, (rows, *shape)) if shape else np.arange(rows) % 10
        packed = gzip.compress(bytes([0, 0, 8, 1 + len(shape)]) + sizes + values.astype(np.uint8).tobytes())
        (tmp_path / dataset / file).write_bytes(packed)
        (tmp_path / file).write_bytes(b"of another data set")
        known.append((file, hashlib.md5(packed, usedforsecurity=False).hexdigest()))
    monkeypatch.setattr(getattr(torchvision.datasets, kind), "resources", known)
    monkeypatch.setattr(getattr(torchvision.datasets, kind), "mirrors", [])
    fetch.main(context("fetch", parameters(data__dataset=dataset)))
    with hdf5.reading(IMAGES, images.FORMAT) as file:
        assert [file.shape(f"{split}/images") for split in SPLITS] == [(n, 1, 28, 28) for n in (40, 20, 20)]
        assert (file.attribute("dataset"), file.attribute("classes")) == (dataset, 10)
        assert (str(file.attributes.get("class_names", "")).split("\n")[-1] or None) == name


# --- the sample of MNIST ---------------------------------------------------------------------------------------------------


def test_the_sample_is_drawn_from_mnist_again_byte_for_byte(digits: dict[str, Digits]) -> None:
    splits = {name: Split(images.numpy(), labels.numpy().astype(np.uint8)) for name, (images, labels) in digits.items()}
    assert mnist_sample.packed(splits) == sample_data.FILE.read_bytes()


def test_the_sample_has_mnists_proportions_and_no_image_in_two_splits() -> None:
    sample = sample_data.mnist_sample()
    assert [len(split.labels) for split in sample.values()] == [6000, 1000, 1000]
    assert len({i.tobytes() for split in sample.values() for i in split.images}) == 8000
    mnist_test = np.array([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])  # its class counts
    for split in (sample["validation"], sample["test"]):
        assert np.abs(np.bincount(split.labels) - mnist_test / 10).max() < 1
    assert sample_data.FILE.stat().st_size < 2e6 and "CC BY-SA 3.0" in (sample_data.FILE.parent / "NOTICE").read_text()


def test_the_bundled_weights_serve_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lfm").symlink_to(ROOT / "lfm")
    for stage in ("fetch", "autoencoder", "classifier"):
        p = parameters(data__dataset="mnist_sample")
        import_module(f"stages.{stage}").main(context(stage, p))
    with hdf5.reading(IMAGES, images.FORMAT) as file:
        assert images.fitted_on(
            file, json.loads(Path("models/classifier/record.json").read_text(encoding="utf-8"))["train_sha256"]
        )
        assert not images.fitted_on(file, "0" * 64)
        np.testing.assert_array_equal(file.read("validation/images"), sample_data.mnist_sample()["validation"].images)

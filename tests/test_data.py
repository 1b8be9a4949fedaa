"""Data sets besides MNIST: folders of images of any kind, through every stage, and the others in MNIST's four files."""

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torchvision.datasets
import yaml
from PIL import Image, ImageDraw

from lfm.evaluation.protocol import enough, flat
from pipeline import run as cli
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import IMAGES, IMAGES_FORMAT, SPLITS
from pipeline.errors import UserError
from pipeline.page import gallery
from pipeline.params import Params, load_params, load_yaml
from pipeline.sources.datasets import folder as load_folder
from pipeline.sources.datasets import hold_out
from pipeline.sources.folder import Pictures, survey
from stages import fetch, sample
from tests.conftest import ROOT, Case, Scene
from tests.test_pipeline import STAGES
from tools.workspace import apply, make_workspace

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


def fetched(**leaves: Any) -> Params:
    """Parameters of `fetch` with some of data's changed."""
    tree = load_yaml((ROOT / "params.yaml").read_text())
    return Params.model_validate(apply(tree, {f"data.{k}": v for k, v in leaves.items()}, "test"))


def of_folder(root: Path, **leaves: Any) -> Params:
    return fetched(**{"dataset": "folder", "root": str(root), "digest": digest_of(root)} | leaves)


def surveyed(root: Path) -> Pictures:
    """All images of a folder, 16×16."""
    return survey(str(root), digest_of(root), 16, False, show=False).splits[""][0]


# --- through every stage -----------------------------------------------------------------------------------------------


def test_a_folder_of_colour_images_goes_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, workspace = shapes(tmp_path / "shapes", 50), tmp_path / "workspace"
    make_workspace(ROOT, workspace, ROOT / "presets/tiny")
    params = workspace / "params.yaml"
    data = {"dataset": "folder", "root": "../shapes", "digest": digest_of(root), "image_size": 40}
    changes = {f"data.{key}": value for key, value in data.items()} | {"model.patch_size": 5}
    params.write_text(yaml.safe_dump(apply(load_yaml(params.read_text()), changes, "test")))
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(cli, "__file__", str(workspace / "stages/cli.py"))
    for name in STAGES:
        cli.run(import_module(f"stages.{name}").main, *STAGES[name]["params"])
    with arrays.reading(IMAGES, IMAGES_FORMAT) as file:
        assert [file.shape(f"{split}/images") for split in SPLITS] == [(n, 3, 40, 40) for n in (108, 21, 21)]
        assert [np.bincount(file.read(f"{split}/labels")).tolist() for split in SPLITS] == [[36] * 3, [7] * 3, [7] * 3]
        assert file.attributes["class_names"] == "disc\nline\nsquare"
    with arrays.reading(Path("data/samples.h5"), "lfm-samples/1") as file:
        assert file.shape("generated/images") == (21, 3, 40, 40)
        assert file.shape("transfer/images") == (3, 3, 3, 40, 40)
    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert "21 images out of noise" in page and "2 square" in page and "digit" not in page
    assert json.loads(Path("reports/metrics.json").read_text())["psnr"] > 0
    with Image.open("reports/samples.png") as picture:
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


def half() -> Image.Image:
    """White, its left half transparent."""
    image = Image.new("LA", (20, 20), (255, 255))
    image.paste((255, 0), (0, 0, 10, 20))
    return image


def wide() -> Image.Image:
    """White in the middle square, grey beside it."""
    image = Image.new("L", (60, 20), 100)
    image.paste(255, (20, 0, 40, 20))
    return image


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (grey(200), 1, [200, 200]),
        (grey(1, "1"), 1, [255, 255]),
        (grey(257 * 7, "I;16"), 1, [7, 7]),
        (half(), 1, [0, 255]),
        (wide(), 1, [255, 255]),
        (Image.new("RGB", (9, 9), (50, 50, 50)), 3, [50, 50]),
        (Image.new("P", (9, 9)), 3, [0, 0]),
    ],
    ids=["grey", "black and white", "16 bits", "transparent over black", "the middle", "colour", "palette"],
)  # fmt: skip
def test_images_of_any_kind_become_squares(
    folder: Path, image: Image.Image, channels: int, expected: list[int]
) -> None:
    for path in filter(Path.is_file, folder.rglob("*.*")):
        path.unlink()
        wide().save(path.with_suffix(".png"))
    image.save(folder / "disc/x.png")
    images = surveyed(folder)
    pixels = np.asarray(images[images.names == "disc/x.png"])[0]
    assert images.shape == (43, channels, 16, 16) and pixels.shape == (channels, 16, 16)
    assert (pixels[:, :, 2] == expected[0]).all() and (pixels[:, :, -3] == expected[1]).all()


def test_photographs_are_turned_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.new("L", (20, 20))
    image.paste(255, (0, 10, 20, 20))  # white below: left when upright
    image.save(folder / "disc/x.png", exif=exif)
    images = surveyed(folder)
    pixels = np.asarray(images[images.names == "disc/x.png"])[0, 0]
    assert (pixels[:, :6] == 255).all() and (pixels[:, 10:] == 0).all()


def test_hidden_and_other_files_are_left_out_and_logged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest_of(folder)
    for name in (".git", "__MACOSX"):
        (folder / name).mkdir()
    for name in ("disc/.DS_Store", "labels.csv", "disc/notes.txt", "beside.png"):
        (folder / name).write_bytes(b"x")
    capsys.readouterr()
    assert digest_of(folder) == before
    log = capsys.readouterr().err
    assert "fetch: 'disc' holds 1 files" in log and "fetch: 1 images beside the folders of the classes" in log
    (folder / "disc/000.png").rename(folder / "disc/zzz.png")
    assert digest_of(folder) != before


def test_images_of_a_single_colour_are_logged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey(7).save(folder / "disc/x.png")
    surveyed(folder)
    assert "fetch: 1 of 43 images are of a single colour each" in capsys.readouterr().err


def link(name: str, target: str) -> Edit:
    return lambda root: (root / name).symlink_to(target)


def splits(*names: str) -> Edit:
    return lambda root: [shapes(root / name, 3) for name in names]


def ink_on_transparent(root: Path) -> None:
    for path in root.rglob("*.png"):
        image = Image.new("LA", (20, 20), (0, 0))
        image.paste((0, 255), (0, 0, 10, 20))
        image.save(path)


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
        half().save(scene.tmp / "shapes/disc/000.png")
        if not meanwhile:
            load_folder(p, False)
        np.asarray(data.train.images), np.asarray(data.test.images)

    return UserError, key, act


def nowhere(name: str) -> Case:
    return UserError, "data.root", lambda scene: survey(name, None, 8, False, show=False)


def figures(images: int, key: str, **changes: int) -> Case:
    e = load_params(ROOT / "params.yaml").evaluate.model_copy(update=changes)
    return UserError, f"evaluate{key}", lambda scene: enough(e, images, np.zeros((50, 784)))


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
    "figures, 15 images": figures(15, ""),
    "figures, blocks": figures(19, ".kid_blocks"),
    "figures, neighbours": figures(20, ".neighbours", neighbours=20),
    "figures, components": figures(20, ".pixel_components"),
}


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "disc/x.png").symlink_to("../line/000.png")
    assert "disc/x.png" in surveyed(folder).names


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_images_are_named_and_counted_and_stop_the_stage_unless_they_are_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "disc/001.JPG").read_bytes()
    (folder / "disc/y.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "line/x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    Image.new("1", (600, 600)).save(folder / "square/bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)
    digest = digest_of(folder)
    reasons = [
        ("disc/y.jpg", ""),
        ("line/x.png", "not an image in a known format"),
        ("square/bomb.png", "360,000 pixels, more than PIL's limit of 200,000"),
    ]
    with pytest.raises(UserError) as error:
        survey(str(folder), digest, 8, False, show=False)
    message = str(error.value)
    assert message.startswith("data.root: 3 of 45 images ") and message.endswith("data.skip_broken: true")
    capsys.readouterr()
    content = survey(str(folder), digest, 8, True, show=False)
    log = capsys.readouterr().err
    for name, reason in reasons:
        assert f"'{name}' ({reason}" in message and f"fetch: '{name}' is broken: {reason}" in log
    assert "fetch: 3 of 45 images are broken and left out" in log
    assert content.broken == 3 and len(content.splits[""][1]) == 42


def test_large_images_are_averaged_before_their_pixels_are_compared() -> None:
    images = np.zeros((2, 3, 64, 64), np.uint8)
    images[:, :, :, ::2] = 200
    assert flat(images).shape == (2, 3 * 32 * 32) and np.allclose(flat(images), 100 / 255)
    assert flat(images[:, :1, :28, :28]).shape == (2, 784)


def test_pictures_are_made_of_so_many_classes_and_of_however_few_images() -> None:
    assert sample.shown(np.arange(300).repeat(2) % 200).tolist() == list(range(16))
    images = np.zeros((37, 1, 4, 4), np.uint8)
    assert [gallery.in_rows(images[:n]).shape[:2] for n in (37, 10, 7)] == [(3, 10), (1, 10), (1, 7)]


def test_every_class_has_a_name_or_none_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    fetch.main(of_folder(folder))
    with arrays.reading(IMAGES, IMAGES_FORMAT) as file:
        assert gallery.named(file) == {0: "0 disc", 1: "1 line", 2: "2 square"}
        file.attributes["class_names"] = "disc"
        with pytest.raises(UserError, match=r"data/images\.h5: names 1 of 3 classes"):
            gallery.named(file)
        del file.attributes["class_names"]
        assert gallery.named(file) == {0: "0", 1: "1", 2: "2"}
    with h5py.File(IMAGES, "a") as raw:
        raw.attrs["class_names"] = 3
    with pytest.raises(UserError, match="class_names"), arrays.reading(IMAGES, IMAGES_FORMAT):
        pass


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
    fetch.main(fetched(dataset=dataset))
    with arrays.reading(IMAGES, IMAGES_FORMAT) as file:
        assert [file.shape(f"{split}/images") for split in SPLITS] == [(n, 1, 28, 28) for n in (40, 20, 20)]
        assert (file.attribute("dataset"), file.attribute("classes")) == (dataset, 10)
        assert (str(file.attributes.get("class_names", "")).split("\n")[-1] or None) == name

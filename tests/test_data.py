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
from pipeline.params import EvaluateParams, Loader, Params, load_params
from pipeline.sources.folder import survey
from stages import fetch, sample
from tests.conftest import ROOT
from tests.test_pipeline import STAGES
from tools.workspace import apply, make_workspace

Edit = Callable[[Path], object]


def drawn(name: str, number: int) -> Image.Image:
    """A coloured shape, 24×20."""
    g = np.random.default_rng([number, len(name)])
    image = Image.new("RGB", (24, 20))
    x, y, r = (int(g.integers(low, high)) for low, high in ((8, 16), (8, 12), (4, 8)))
    colour = tuple(int(v) for v in g.integers(80, 256, 3))
    box = (x - r, y - r, x + r, y + r)
    shape = {"disc": "ellipse", "square": "rectangle", "line": "line"}[name]
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    return image


def shapes(root: Path, each: int) -> Path:
    """Three classes, half of the files PNG and half JPEG."""
    for name in ("square", "disc", "line"):
        (root / name).mkdir(parents=True)
        for i in range(each):
            drawn(name, i).save(root / name / f"{i:03d}.{('png', 'JPG')[i % 2]}")
    return root


def digest_of(root: Path) -> str:
    """What the error says is to be set."""
    with pytest.raises(UserError) as error:
        survey(str(root), None, 8, True, show=False)
    message, _, digest = str(error.value).rpartition(" ")
    assert message == f"data.digest is None, but the content of {str(root)!r} has {digest}; set data.digest:"
    return digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shapes(tmp_path / "shapes", 14)


def fetched(**leaves: Any) -> Params:
    """Parameters of `fetch` with some of data's changed."""
    tree = yaml.load((ROOT / "params.yaml").read_text(), Loader)
    return Params.model_validate(apply(tree, {f"data.{k}": v for k, v in leaves.items()}, "test"))


def of_folder(root: Path, **leaves: Any) -> Params:
    return fetched(**{"dataset": "folder", "root": str(root), "digest": digest_of(root)} | leaves)


# --- through every stage -----------------------------------------------------------------------------------------------


def test_a_folder_of_colour_images_goes_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, workspace = shapes(tmp_path / "shapes", 50), tmp_path / "workspace"
    make_workspace(ROOT, workspace, ROOT / "presets/tiny")
    params = workspace / "params.yaml"
    data = {"dataset": "folder", "root": "../shapes", "digest": digest_of(root), "image_size": 40}
    changes = {f"data.{key}": value for key, value in data.items()} | {"model.patch_size": 5}
    params.write_text(yaml.safe_dump(apply(yaml.load(params.read_text(), Loader), changes, "test")))
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
    first, again, other = (fetch.folder(of_folder(folder, seed=seed).data, False) for seed in (0, 0, 1))
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
    data = fetch.folder(of_folder(tmp_path / "x").data, False)
    assert {name.split("/")[0] for name in data.test.images.names} == {"test"}
    train, validation = fetch.hold_out(data.train, data.test.labels, 0)
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
def test_images_of_any_kind(folder: Path, image: Image.Image, channels: int, expected: list[int]) -> None:
    for path in folder.rglob("*.*"):
        if path.is_file():
            path.unlink()
            grey(0).save(path.with_suffix(".png"))
    image.save(folder / "disc/x.png")
    data = survey(str(folder), digest_of(folder), 16, False, show=False)
    images = data.splits[""][0]
    found = np.asarray(images[images.names == "disc/x.png"])[0]
    assert images.shape == (43, channels, 16, 16) and found.shape == (channels, 16, 16)
    assert (found[:, :, 2] == expected[0]).all() and (found[:, :, -3] == expected[1]).all()


def test_photographs_are_turned_upright(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.new("L", (20, 20))
    image.paste(255, (0, 10, 20, 20))  # white below: left when upright
    image.save(folder / "disc/x.png", exif=exif)
    images = survey(str(folder), digest_of(folder), 16, False, show=False).splits[""][0]
    found = np.asarray(images[images.names == "disc/x.png"])[0, 0]
    assert (found[:, :6] == 255).all() and (found[:, 10:] == 0).all()


def test_hidden_and_other_files_are_no_part_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest_of(folder)
    (folder / ".git").mkdir()
    (folder / "disc/.DS_Store").write_bytes(b"x")
    (folder / "labels.csv").write_text("x")
    (folder / "disc/notes.txt").write_text("x")
    capsys.readouterr()
    assert digest_of(folder) == before
    assert (
        "fetch: 'disc' holds 1 files that are no images by their suffix; they are left out" in capsys.readouterr().err
    )
    (folder / "disc/000.png").rename(folder / "disc/zzz.png")
    assert digest_of(folder) != before


def link(name: str, target: str) -> Edit:
    return lambda root: (root / name).symlink_to(target)


def more(name: str, content: bytes | None = None) -> Edit:
    """A file, or a folder where nothing is said of its content."""
    return lambda root: (root / name).mkdir(parents=True) if content is None else (root / name).write_bytes(content)


def fewer(root: Path) -> None:
    (root / "line/000.png").unlink()


def one(root: Path) -> None:
    shutil.rmtree(root / "line")
    shutil.rmtree(root / "disc")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (link("disc/x.png", "/etc/passwd"), "'disc/x.png' is a link that leads out of the folder, to '/etc/passwd', which is "
         "refused; put the images themselves there, or remove it"),
        (link("disc/x", "../../../etc"), "'disc/x' is a link that leads out of the folder, to "),
        (link("more", ".."), "'more' is a link that leads out of the folder, to "),
        (link("disc/x.png", "none.png"), "'disc/x.png' is no file that can be read; mend or remove it"),
        (lambda root: os.mkfifo(root / "disc/x.png"), "'disc/x.png' is no file that can be read; mend or remove it"),
        (link("loop", "."), "'loop/disc' is a folder within a class, which holds images alone; move it away"),
        (more("disc/small"), "'disc/small' is a folder within a class, which holds images alone; move it away"),
        (more("empty"), "class 'empty' has 0 images for training and 0 for test; there must be 2 for test and more for "
         "training, of which as many are for validation: 14 where a seventh is drawn"),
        (fewer, "class 'line' has 12 images for training and 1 for test; there must be"),
        (one, "holds 1 sub-folders; it must hold one a class, 2 to 256 of them"),
        (more("a\nb"), "a class is named 'a\\nb'; rename it, with at most 60 printable characters"),
        (lambda root: [(root / name / "x").mkdir(parents=True) for name in ("train", "test")],
         "holds train and test, and 'disc' beside them; move that away"),
    ],
    ids=["link", "link upwards", "link of a class", "dangling link", "pipe", "loop", "nested", "empty", "few", "one class",
         "odd name", "beside train"],
)  # fmt: skip
def test_a_folder_that_is_laid_out_otherwise_is_told(folder: Path, edit: Edit, message: str) -> None:
    edit(folder)
    with pytest.raises(UserError) as error:
        if message.startswith("class '"):  # there are too few only when all have been read
            fetch.folder(of_folder(folder).data, False)
        survey(str(folder), None, 8, False, show=False)
    assert str(error.value).startswith(f"data.root: {message}") and "\n" not in str(error.value)


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "disc/x.png").symlink_to("../line/000.png")
    assert "disc/x.png" in survey(str(folder), digest_of(folder), 8, False, show=False).splits[""][0].names


def test_train_and_test_hold_the_same_classes(tmp_path: Path) -> None:
    shapes(tmp_path / "train", 3)
    (tmp_path / "test/disc").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        survey(str(tmp_path), None, 8, False, show=False)
    assert str(error.value) == "data.root: train and test must hold the same classes, and only one has 'line'"


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
    assert message.startswith("data.root: 3 of 45 images are broken: 'disc/y.jpg' (") and "\n" not in message
    assert message.endswith("; mend or remove them, or set data.skip_broken: true")
    capsys.readouterr()
    found = survey(str(folder), digest, 8, True, show=False)
    told = capsys.readouterr().err
    for name, reason in reasons:
        assert f"'{name}' ({reason}" in message and f"fetch: '{name}' is broken: {reason}" in told
    assert "fetch: 3 of 45 images are broken and left out" in told
    assert found.broken == 3 and len(found.splits[""][1]) == 42


def test_many_broken_images_make_one_line(folder: Path) -> None:
    for path in folder.glob("disc/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"14 of 42 images are broken: 'disc/000.png' \(.* and 9 more; mend or remove"):
        survey(str(folder), None, 8, False, show=False)


def test_a_folder_whose_content_changed_is_told(folder: Path) -> None:
    p = of_folder(folder)
    data = fetch.folder(p.data, False)
    grey(1).save(folder / "disc/000.png")
    with pytest.raises(UserError) as error:
        np.asarray(data.train.images), np.asarray(data.test.images)
    assert str(error.value) == "data.root: 'disc/000.png' changed while this stage ran; run `dvc repro` again"
    with pytest.raises(UserError, match=f"^data.digest is '{p.data.digest}', but the content of"):
        fetch.folder(p.data, False)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        survey(str(tmp_path / "none"), None, 8, False, show=False)
    assert str(error.value) == (
        f"data.root: {str(tmp_path / 'none')!r} is no directory; mend it (a relative path begins in the project)"
    )


def test_large_images_are_averaged_before_their_pixels_are_compared() -> None:
    images = np.zeros((2, 3, 64, 64), np.uint8)
    images[:, :, :, ::2] = 200
    assert flat(images).shape == (2, 3 * 32 * 32) and np.allclose(flat(images), 100 / 255)
    assert flat(images[:, :1, :28, :28]).shape == (2, 784)


@pytest.mark.parametrize(
    ("fewest", "changes", "message"),
    [
        (15, {}, "evaluate: a set has 15 images; figures take at least 16: add images to the data set"),
        (19, {}, "evaluate.kid_blocks is 10; with this many images it must be at most 9"),
        (20, {"neighbours": 20}, "evaluate.neighbours is 20; with this many images it must be at most 19"),
        (20, {}, "evaluate.pixel_components is 128; with this many images it must be at most 50"),
    ],
)
def test_too_few_images_for_the_figures_are_told(fewest: int, changes: dict[str, int], message: str) -> None:
    e: EvaluateParams = load_params(ROOT / "params.yaml").evaluate.model_copy(update=changes)
    with pytest.raises(UserError) as error:
        enough(e, fewest, np.zeros((50, 784)))
    assert str(error.value) == message


def test_pictures_are_made_of_so_many_classes_and_of_however_few_images() -> None:
    assert sample.shown(np.arange(300).repeat(2) % 200).tolist() == list(range(16))
    images = np.zeros((37, 1, 4, 4), np.uint8)
    assert [gallery.in_rows(images[:n]).shape[:2] for n in (37, 10, 7)] == [(3, 10), (1, 10), (1, 7)]


def test_names_that_are_not_of_all_classes_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    fetch.main(of_folder(folder))
    with arrays.reading(IMAGES, IMAGES_FORMAT) as file:
        assert gallery.class_names(file, IMAGES) == {0: "0 disc", 1: "1 line", 2: "2 square"}
        file.attributes["class_names"] = "disc"
        with pytest.raises(UserError) as error:
            gallery.class_names(file, IMAGES)
        assert str(error.value) == "data/images.h5: names 1 of 3 classes; delete it and run `dvc repro`"
        del file.attributes["class_names"]
        assert gallery.class_names(file, IMAGES) == {0: "0", 1: "1", 2: "2"}
    with h5py.File(IMAGES, "a") as raw:
        raw.attrs["class_names"] = 3
    with (
        pytest.raises(UserError, match="attribute 'class_names' is 3, which is no str"),
        arrays.reading(IMAGES, IMAGES_FORMAT),
    ):
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
        found = str(file.attributes["class_names"]).split("\n")[-1] if "class_names" in file.attributes else None
        assert found == name
    (tmp_path / dataset / names[0]).unlink()
    with pytest.raises(UserError) as error:
        fetch.main(fetched(dataset=dataset))
    wrong = hashlib.md5(b"of another data set", usedforsecurity=False).hexdigest()
    assert f"{tmp_path}/{names[0]}: md5 {wrong} of 19 bytes, damaged or another file" in str(error.value)

"""A folder of images with one sub-folder for each class: which files belong to it, and the digest of their content.

ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE. Hidden files are ignored, files without an image's
suffix are left out and mentioned, and a link must not lead out of the root.
"""

import hashlib
import os
import reprlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lfm.errors import ConfigError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CLASSES, LETTERS = 256, 60  # at most: labels are bytes, and the names are stored in an attribute of 64 KB
SPLITS = ("train", "test")
OTHER_NAMES = {"training": "train", "testing": "test", "train": "train", "test": "test"}  # in any case, of the splits


class Listed(NamedTuple):
    """One image."""

    part: str  # train or test, or empty
    label: int
    name: str  # relative to the root


class Listing(NamedTuple):
    parts: tuple[str, ...]
    classes: list[str]  # a label each, sorted
    images: list[Listed]  # by part, class and name
    notes: list[str]  # what was left out


def listing(root: Path) -> Listing:
    """All images of a folder. Raises `ConfigError` if its layout is wrong."""
    notes: list[str] = []
    parts = _parts(root)
    folders = _classes(root, parts, notes)
    images = [
        Listed(part, label, name)
        for part in parts
        for label, c in enumerate(folders)
        for name in _images(root, f"{part}/{c}" if part else c, notes)
    ]
    return Listing(parts, [_text(c) for c in folders], images, notes)


def folder_digest(root: Path) -> tuple[str, Listing]:
    """What `data.digest` pins, and the images it covers. Raises `ConfigError` if the layout is wrong or a file unreadable."""
    files = listing(root)
    names = [image.name for image in files.images]

    def sha256(name: str) -> str:
        try:
            with (root / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"{_shown(name)} can't be read ({error.strerror}); fix or remove it") from error

    with ThreadPoolExecutor() as pool:
        return digest(zip(names, pool.map(sha256, names), strict=True)), files


def digest(images: Iterable[tuple[str, str]]) -> str:
    """sha256 over the names of all images, sorted, and the sha256 of their contents."""
    total = hashlib.sha256()
    for name, sha256 in sorted(images):
        total.update(os.fsencode(name) + b"\0" + bytes.fromhex(sha256))
    return total.hexdigest()


def _entries(root: Path, folder: str) -> list[tuple[str, os.DirEntry[str]]]:
    """The sorted entries of a folder within the root, hidden ones left out, each with its name relative to the root."""
    entries = []
    for entry in sorted(os.scandir(root / folder), key=lambda e: e.name):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or entry.name == "__MACOSX":  # left by macOS in an archive
            continue
        if entry.is_symlink() and not Path(target := os.path.realpath(entry.path)).is_relative_to(root):
            raise ConfigError(
                f"{_shown(name)} is a link that leads out of the folder, to {_shown(target)}; "
                "copy the images instead, or remove it"
            )
        entries.append((name, entry))
    return entries


def _folders(root: Path, folder: str) -> list[str]:
    return [entry.name for _, entry in _entries(root, folder) if entry.is_dir()]


def _parts(root: Path) -> tuple[str, ...]:
    """("train", "test") where the folder holds both, else ("",)."""
    names = _folders(root, "")
    if not set(SPLITS) <= set(names):
        like = {OTHER_NAMES.get(name.lower(), ""): name for name in names}
        if set(SPLITS) <= set(like):
            renamed = " and ".join(f"{_shown(like[name])} to {name}" for name in SPLITS if like[name] != name)
            raise ConfigError(f"holds {_shown(names)}; rename {renamed}")
        return ("",)
    if others := set(names) - set(SPLITS):
        raise ConfigError(f"holds train and test, and {_shown(min(others))} beside them; move that away")
    return SPLITS


def _text(name: str) -> str:
    """The name of a file as UTF-8 has it, whatever the locale's encoding."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _classes(root: Path, parts: Sequence[str], notes: list[str]) -> list[str]:
    """The folders of the classes, the same in every part."""
    names = [_folders(root, part) for part in parts]
    if strange := set(names[0]) ^ set(names[-1]):
        raise ConfigError(f"train and test must hold the same classes, and only one has {_shown(min(strange))}")
    classes = names[0]
    if not 2 <= len(classes) <= CLASSES:
        raise ConfigError(f"holds {len(classes)} sub-folders; it must hold one a class, 2 to {CLASSES} of them")
    for part in parts:
        if beside := sum(name.lower().endswith(SUFFIXES) for name, entry in _entries(root, part) if not entry.is_dir()):
            notes.append(f"{beside:,} images beside the folders of the classes are left out")
    for name in map(_text, classes):
        if not name.isprintable() or len(name) > LETTERS:
            raise ConfigError(
                f"a class is named {_shown(name)}; rename it, with at most {LETTERS} printable characters"
            )
    return classes


def _images(root: Path, folder: str, notes: list[str]) -> list[str]:
    """The images of one class, by their suffixes."""
    names, others = [], 0
    for name, entry in _entries(root, folder):
        if entry.is_dir():
            raise ConfigError(f"{_shown(name)} is a folder within a class; move it away, or its images into the class")
        if not name.lower().endswith(SUFFIXES):
            others += 1
        elif not entry.is_file():
            raise ConfigError(f"{_shown(name)} is not a readable file; fix or remove it")
        else:
            names.append(name)
    if others:
        notes.append(f"{_shown(folder)} holds {others:,} files without an image's suffix; they are left out")
    return names


def _shown(value: object) -> str:
    """A value for an error message: on one line, and shortened if it is long."""
    short = reprlib.Repr()
    short.maxstring = 100
    return short.repr(value)

"""The files in a folder of images with one sub-folder for each class, by name only.

ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE. Hidden files are ignored, files without an image's
suffix are left out with a line in the log, and a link must not lead out of the root.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.params import format_value
from pipeline.progress import say

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


def listing(root: Path) -> Listing:
    """All images of a folder. Raises `UserError` if its layout is wrong."""
    parts = _parts(root)
    classes = _classes(root, parts)
    images = [
        Listed(part, label, name)
        for part in parts
        for label, c in enumerate(classes)
        for name in _images(root, f"{part}/{c}" if part else c)
    ]
    return Listing(parts, classes, images)


def _entries(root: Path, folder: str) -> list[tuple[str, os.DirEntry[str]]]:
    """The sorted entries of a folder within the root, hidden ones left out, each with its name relative to the root."""
    entries = []
    for entry in sorted(os.scandir(root / folder), key=lambda e: e.name):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or entry.name == "__MACOSX":  # left by macOS in an archive
            continue
        if entry.is_symlink() and not Path(target := os.path.realpath(entry.path)).is_relative_to(root):
            raise UserError(
                f"data.root: {format_value(name)} is a link that leads out of the folder, to {format_value(target)}; "
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
            renamed = " and ".join(f"{format_value(like[name])} to {name}" for name in SPLITS if like[name] != name)
            raise UserError(f"data.root: holds {format_value(names)}; rename {renamed}")
        return ("",)
    if others := set(names) - set(SPLITS):
        raise UserError(f"data.root: holds train and test, and {format_value(min(others))} beside them; move that away")
    return SPLITS


def _classes(root: Path, parts: Sequence[str]) -> list[str]:
    """The names of the classes, the same in every part."""
    names = [_folders(root, part) for part in parts]
    if strange := set(names[0]) ^ set(names[-1]):
        raise UserError(
            f"data.root: train and test must hold the same classes, and only one has {format_value(min(strange))}"
        )
    classes = names[0]
    if not 2 <= len(classes) <= CLASSES:
        raise UserError(
            f"data.root: holds {len(classes)} sub-folders; it must hold one a class, 2 to {CLASSES} of them"
        )
    for part in parts:
        if beside := sum(name.lower().endswith(SUFFIXES) for name, entry in _entries(root, part) if not entry.is_dir()):
            say(f"fetch: {beside:,} images beside the folders of the classes are left out")
    for name in classes:
        if not name.isprintable() or len(name) > LETTERS:
            raise UserError(
                f"data.root: a class is named {format_value(name)}; rename it, with at most {LETTERS} printable characters"
            )
    return classes


def _images(root: Path, folder: str) -> list[str]:
    """The images of one class, by their suffixes."""
    names, others = [], 0
    for name, entry in _entries(root, folder):
        if entry.is_dir():
            raise UserError(
                f"data.root: {format_value(name)} is a folder within a class; move it away, or its images into the class"
            )
        if not name.lower().endswith(SUFFIXES):
            others += 1
        elif not entry.is_file():
            raise UserError(f"data.root: {format_value(name)} is not a readable file; fix or remove it")
        else:
            names.append(name)
    if others:
        say(f"fetch: {format_value(folder)} holds {others:,} files without an image's suffix; they are left out")
    return names

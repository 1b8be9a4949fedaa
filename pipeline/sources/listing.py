"""What lies in a folder of images, one sub-folder a class: names alone, checked.

ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE. Hidden files are no part of it, files without an
image's suffix are left out, and no link may lead out of the root.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.params import format_value as shown
from pipeline.progress import say

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CLASSES, LETTERS = 256, 60  # at most: labels are bytes, and the names are kept in an attribute of 64 KB
SPLITS = ("train", "test")


class Listed(NamedTuple):
    """One image."""

    part: str  # train or test, or nothing
    label: int
    name: str  # from the root on


class Listing(NamedTuple):
    parts: tuple[str, ...]
    classes: list[str]  # a label each, sorted
    images: list[Listed]  # by part, class and name


def listing(root: Path) -> Listing:
    """All images of a folder. Raises `UserError` where it is not laid out as it must be."""
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
    """What a folder within the root holds, hidden files left out, in order, each with its name from the root on."""
    found = []
    for entry in sorted(os.scandir(root / folder), key=lambda e: e.name):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not Path(target := os.path.realpath(entry.path)).is_relative_to(root):
            raise UserError(
                f"data.root: {shown(name)} is a link that leads out of the folder, to {shown(target)}, which is refused; "
                "put the images themselves there, or remove it"
            )
        found.append((name, entry))
    return found


def _folders(root: Path, folder: str) -> list[str]:
    return [entry.name for _, entry in _entries(root, folder) if entry.is_dir()]


def _parts(root: Path) -> tuple[str, ...]:
    """("train", "test") where the folder holds both, else ("",)."""
    found = _folders(root, "")
    if not set(SPLITS) <= set(found):
        return ("",)
    if others := set(found) - set(SPLITS):
        raise UserError(f"data.root: holds train and test, and {shown(min(others))} beside them; move that away")
    return SPLITS


def _classes(root: Path, parts: Sequence[str]) -> list[str]:
    """The names of the classes, the same in every part."""
    found = [_folders(root, part) for part in parts]
    if strange := set(found[0]) ^ set(found[-1]):
        raise UserError(f"data.root: train and test must hold the same classes, and only one has {shown(min(strange))}")
    classes = found[0]
    if not 2 <= len(classes) <= CLASSES:
        raise UserError(
            f"data.root: holds {len(classes)} sub-folders; it must hold one a class, 2 to {CLASSES} of them"
        )
    for name in classes:
        if not name.isprintable() or len(name) > LETTERS:
            raise UserError(
                f"data.root: a class is named {shown(name)}; rename it, with at most {LETTERS} printable characters"
            )
    return classes


def _images(root: Path, folder: str) -> list[str]:
    """The images of one class, by their suffixes."""
    names, others = [], 0
    for name, entry in _entries(root, folder):
        if entry.is_dir():
            raise UserError(
                f"data.root: {shown(name)} is a folder within a class, which holds images alone; move it away"
            )
        if not name.lower().endswith(SUFFIXES):
            others += 1
        elif not entry.is_file():
            raise UserError(f"data.root: {shown(name)} is no file that can be read; mend or remove it")
        else:
            names.append(name)
    if others:
        say(f"fetch: {shown(folder)} holds {others:,} files that are no images by their suffix; they are left out")
    return names

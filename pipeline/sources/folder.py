"""Images in a folder of the user's: each looked at once, then decoded a few at a time. DVC does not see the folder, so
`data.digest` pins its content."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lfm import decoder
from lfm.errors import ConfigError
from lfm.folder import digest as content_digest
from lfm.folder import listing
from pipeline.errors import UserError
from pipeline.params import format_value
from pipeline.paths import user_path
from pipeline.progress import Progress, say

TOGETHER = 1000  # files that are looked at, or decoded, before the next ones are
NAMED = 5  # broken images that the error names; the log names all


class Look(NamedTuple):
    """What one file is."""

    sha256: str
    grey: bool
    broken: str  # why, or nothing


class Pictures:
    """Images of a folder, decoded when numpy asks for them: an array (N, C, size, size) as far as `fetch` needs one."""

    def __init__(self, root: Path, names: np.ndarray, sha256: np.ndarray, channels: int, size: int) -> None:
        self.root, self.names, self.sha256, self.channels, self.size = root, names, sha256, channels, size

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.names), self.channels, self.size, self.size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Any) -> "Pictures":
        """Some of them: a slice, a mask or numbers."""
        return Pictures(self.root, self.names[rows], self.sha256[rows], self.channels, self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them at once, uint8."""
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._one, self.names, self.sha256)))

    def _one(self, name: str, sha256: str) -> np.ndarray:
        with (self.root / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise UserError(f"data.root: {format_value(name)} changed while this stage ran; run `dvc repro` again")
            return decoder.square(decoder.decode(file), self.channels, self.size)


class Folder(NamedTuple):
    """What was found."""

    classes: list[str]  # a label each, sorted
    splits: dict[str, tuple[Pictures, np.ndarray]]  # images and labels (N,) uint8: of train and test, or of "" for all
    broken: int  # images left out


def survey(place: str, digest: str | None, size: int, skip_broken: bool, show: bool) -> Folder:
    """Look at every image of a folder. Raises `UserError` where the folder is not laid out as it must be, holds broken
    images that are not to be skipped, or has another content than `digest` says."""
    root = Path(os.path.realpath(user_path(place)))
    if not root.is_dir():
        raise UserError(
            f"data.root: {format_value(place)} is no directory; mend it (a relative path begins in the project)"
        )
    try:
        parts, classes, listed, notes = listing(root)
    except ConfigError as error:
        raise UserError(f"data.root: {error}") from error
    for note in notes:
        say(f"fetch: {note}")
    names = [image.name for image in listed]
    looks = list(_look(root, names, show))
    broken = {name: look.broken for name, look in zip(names, looks, strict=True) if look.broken}
    _tell(broken, len(names), skip_broken)
    if (found := content_digest(zip(names, (look.sha256 for look in looks), strict=True))) != digest:
        raise UserError(
            f"data.digest is {digest!r}, but the content of {format_value(place)} has {found}; set data.digest: {found}"
        )
    channels = 1 if all(look.grey for look in looks if not look.broken) else 3
    splits = {}
    for part in parts:
        good = [i for i, image in enumerate(listed) if image.part == part and not looks[i].broken]
        files, sha256 = (np.array([v[i] for i in good], object) for v in (names, [look.sha256 for look in looks]))
        labels = np.array([listed[i].label for i in good], np.uint8)
        splits[part] = (Pictures(root, files, sha256, channels, size), labels)
    return Folder(classes, splits, len(broken))


def _look(root: Path, names: list[str], show: bool) -> Iterator[Look]:
    """Each file, decoded once."""

    def one(name: str) -> Look:
        try:
            with (root / name).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                try:
                    return Look(sha256, decoder.decode(file).mode == "L", "")
                except decoder.Broken as error:
                    return Look(sha256, False, str(error))
        except OSError as error:
            raise UserError(
                f"data.root: {format_value(name)} can't be read ({error.strerror}); mend or remove it"
            ) from error

    with ThreadPoolExecutor() as pool, Progress(len(names), "fetch", "image", show) as progress:
        for start in range(0, len(names), TOGETHER):
            for look in pool.map(one, names[start : start + TOGETHER]):
                progress.advance()
                yield look


def _tell(broken: dict[str, str], total: int, skip: bool) -> None:
    for name, reason in broken.items():
        say(f"fetch: {format_value(name)} is broken: {reason}")
    if broken and not skip:
        first = ", ".join(f"{format_value(name)} ({reason})" for name, reason in list(broken.items())[:NAMED])
        more = f" and {len(broken) - NAMED:,} more" if len(broken) > NAMED else ""
        raise UserError(
            f"data.root: {len(broken):,} of {total:,} images are broken: {first}{more}; mend or remove them, or set "
            "data.skip_broken: true"
        )
    if broken:
        say(f"fetch: {len(broken):,} of {total:,} images are broken and left out")

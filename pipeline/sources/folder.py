"""A folder of the user's images: each file is checked once, then decoded when it is needed. DVC does not see the folder, so
`data.digest` pins its content."""

import hashlib
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
from pipeline.paths import user_folder
from pipeline.progress import Progress, say

BATCH = 1000  # files that are checked, or decoded, before the next ones are
LISTED = 5  # broken images in the error; the log lists all


class Checked(NamedTuple):
    """One image file."""

    sha256: str
    grey: bool
    broken: str  # the reason, or empty
    plain: bool = False  # a single colour


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
    """What a folder holds."""

    classes: list[str]  # a label each, sorted
    splits: dict[str, tuple[Pictures, np.ndarray]]  # images and labels (N,) uint8: of train and test, or of "" for all
    broken: int  # images left out


def survey(place: str, digest: str | None, size: int, skip_broken: bool, show: bool) -> Folder:
    """Check every image of a folder. Raises `UserError` if its layout is wrong, if it holds corrupt images that are not to be
    skipped, or if its content is not the one that `digest` pins."""
    named = user_folder(place)
    if named is None:
        raise UserError(
            f"data.root: {format_value(place)} is no directory; correct it (relative paths start in the project)"
        )
    root = named.resolve()
    try:
        parts, classes, listed, notes = listing(root)
    except ConfigError as error:
        raise UserError(f"data.root: {error}") from error
    for note in notes:
        say(f"fetch: {note}")
    names = [image.name for image in listed]
    checks = list(_check(root, names, show))
    broken = {name: c.broken for name, c in zip(names, checks, strict=True) if c.broken}
    _report(broken, len(names), skip_broken)
    if plain := sum(c.plain for c in checks):
        if plain == len(names) - len(broken):
            raise UserError(
                f"data.root: each of {plain:,} images is of a single colour (transparent parts are put over black); choose "
                "light ink, or an opaque background"
            )
        say(f"fetch: {plain:,} of {len(names):,} images are of a single colour each")
    if (actual := content_digest(zip(names, (c.sha256 for c in checks), strict=True))) != digest:
        raise UserError(
            f"data.digest is {digest!r}, but the content of {format_value(place)} has {actual}; set data.digest: {actual}"
        )
    channels = 1 if all(c.grey for c in checks if not c.broken) else 3
    splits = {}
    for part in parts:
        whole = [i for i, image in enumerate(listed) if image.part == part and not checks[i].broken]
        files, sha256 = (np.array([v[i] for i in whole], object) for v in (names, [c.sha256 for c in checks]))
        labels = np.array([listed[i].label for i in whole], np.uint8)
        splits[part] = (Pictures(root, files, sha256, channels, size), labels)
    return Folder(classes, splits, len(broken))


def _check(root: Path, names: list[str], show: bool) -> Iterator[Checked]:
    """Each file, decoded once."""

    def one(name: str) -> Checked:
        try:
            with (root / name).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                try:
                    image = decoder.decode(file)
                    ranges = np.ptp(np.reshape(image.getextrema(), (-1, 2)), axis=1)
                    return Checked(sha256, image.mode == "L", "", plain=not ranges.any())
                except decoder.Broken as error:
                    return Checked(sha256, False, str(error))
        except OSError as error:
            raise UserError(
                f"data.root: {format_value(name)} can't be read ({error.strerror}); fix or remove it"
            ) from error

    with ThreadPoolExecutor() as pool, Progress(len(names), "fetch", "image", show) as progress:
        for start in range(0, len(names), BATCH):
            for c in pool.map(one, names[start : start + BATCH]):
                progress.advance()
                yield c


def _report(broken: dict[str, str], total: int, skip: bool) -> None:
    for name, reason in broken.items():
        say(f"fetch: {format_value(name)} is broken: {reason}")
    if broken and not skip:
        first = ", ".join(f"{format_value(name)} ({reason})" for name, reason in list(broken.items())[:LISTED])
        more = f" and {len(broken) - LISTED:,} more" if len(broken) > LISTED else ""
        raise UserError(
            f"data.root: {len(broken):,} of {total:,} images are broken: {first}{more}; fix or remove them, or set "
            "data.skip_broken: true"
        )
    if broken:
        say(f"fetch: {len(broken):,} of {total:,} images are broken and left out")

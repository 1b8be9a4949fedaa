"""Files with known checksums, from the user's mirror or the publisher's."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline import http
from pipeline.errors import UserError
from pipeline.paths import user_path
from pipeline.sources import idx

MIRROR = "LFM_MIRROR"
LISTED = 4  # files that the error lists of a folder


class Published(NamedTuple):
    """A gzipped IDX file as its publisher offers it."""

    dataset: str  # mnist
    folder: str  # MNIST, in which torchvision keeps it: MNIST/raw
    name: str  # train-images-idx3-ubyte.gz
    md5: str  # of the gzip file
    sha256: str | None = None  # of its content, where that is known

    def content(self, data: bytes) -> bytes | None:
        """What is in it, if `data` is this file, unpacked or packed again included."""
        try:
            content = idx.unpack(self.name, data)
        except UserError:
            return None
        known = hashlib.sha256(content).hexdigest() == self.sha256
        return content if known or hashlib.md5(data, usedforsecurity=False).hexdigest() == self.md5 else None


def fetch(file: Published, publishers: Iterable[str], show: bool) -> bytes:
    """The content of one file, from the first place that has it.

    `LFM_MIRROR` is tried first. In a directory the file may have any name; where the checksum of its content is known, it may
    also be unpacked or packed again. Raises `UserError` that names the file, what each place answered, and the ways out.
    """
    mirror, answers = os.environb.get(MIRROR.encode(), b"").decode(errors="surrogateescape"), []
    names, folders = (file.name, file.name.removesuffix(".gz")), (f"{file.dataset}/", "", f"{file.folder}/raw/")
    own = _read(file, mirror, [folder + name for folder in folders for name in names], show) if mirror else ()
    for place, data in itertools.chain(own, *(_read(file, url, [file.name], show) for url in publishers)):
        if isinstance(data, bytes):
            if (content := file.content(data)) is not None:
                return content
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            data = f"md5 {md5} of {len(data):,} bytes, corrupt or another file"
        answers.append(f"{place}: {data}")
    raise UserError(
        f"{file.name} (expected md5 {file.md5}) could not be fetched. Tried {'; '.join(answers)}. "
        f"Ways out: go online, or set {MIRROR} to a directory or URL that holds it, or set data.dataset: mnist_sample in "
        "params.yaml, which needs no download"
    )


def _read(file: Published, mirror: str, paths: Iterable[str], show: bool) -> Iterator[tuple[str, bytes | str]]:
    """The places in a mirror where the file may be, each with its data or with the reason why there is none."""
    scheme, colon, rest = mirror.partition("://")
    if not colon or scheme.lower() == "file":
        yield from _in_directory(file, url2pathname(urlsplit("//" + rest).path) if colon else mirror)
        return
    if scheme.lower() not in ("http", "https"):
        yield http.public(mirror), "neither http, https nor file"
        return
    for path in paths:
        url = mirror
        try:
            parts = urlsplit(mirror)
            url = parts._replace(path=f"{parts.path.rstrip('/')}/{path}").geturl()
            yield http.public(url), http.get(url, file.name, idx.LARGEST, show)
        except http.ERRORS as error:
            yield http.public(url), http.reason(error)
            if getattr(getattr(error, "response", None), "status_code", None) not in (403, 404, 410):
                return  # the other places would give the same answer, after the same wait


def _in_directory(file: Published, mirror: str) -> Iterator[tuple[str, bytes | str]]:
    """By name, then by content: any gzip or IDX file in the directory, or where torchvision puts it beside or below."""
    raw = f"{file.folder}/raw"
    hint = f"; files of {file.dataset} are recognised as published (.gz) alone, neither unpacked nor packed again"
    hint = "" if file.sha256 else hint
    try:
        root = user_path(mirror)
        folders = [
            f for f in (root / name for name in (file.dataset, "", raw, "raw", f"../{raw}", "../raw")) if f.is_dir()
        ]
        if not root.is_dir():
            yield mirror, "no such directory"
        for folder in folders:
            files = sorted(f for f in folder.iterdir() if f.is_file() and f.stat().st_size <= idx.LARGEST)
            named = folder / file.name
            if named in files:
                yield str(named), named.read_bytes()
            for other in files:
                if other != named and _is_packed_or_idx(other) and file.content(data := other.read_bytes()) is not None:
                    yield str(other), data
            seen = [f.name for f in files]
            more = f" and {len(seen) - LISTED} more" if len(seen) > LISTED else ""
            yield (
                str(folder),
                f"none of its files is it ({', '.join(seen[:LISTED])}{more}){hint}" if seen else "holds no files",
            )
    except (OSError, ValueError, RuntimeError) as error:  # a user's home that does not exist, a NUL in the name
        yield mirror, " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")


def _is_packed_or_idx(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) in (b"\x1f\x8b\x08", idx.MAGIC)

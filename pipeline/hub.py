"""Files of a model on the Hugging Face hub, at one commit: from this machine's cache, or downloaded into it.

The cache is huggingface_hub's, in its documented layout; `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` apply.
The transfer is ours: huggingface_hub discards the part that a killed download had, and compares sizes only. Here the next
download resumes, and a file is refused if its hash is not the one that the hub states, also if it was cached earlier.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import requests
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers
from urllib3.exceptions import HTTPError, ProtocolError

from pipeline import http
from pipeline.errors import UserError
from pipeline.machine.process import alone
from pipeline.progress import Progress

HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # how the hub names a file: by git's sha1, or sha256 where it is large


def newest(model: str) -> str:
    """The commit that a model's main branch is at."""
    return str(HfApi().model_info(model).sha)


def files(model: str, commit: str, names: Iterable[str], show: bool) -> Path:
    """The folder with these files of a model (owner/name) at a commit (40 hex digits).

    What is in the cache is not asked for again. Raises `UserError` where a file can't be downloaded or is corrupt.
    """
    folder = Path()
    for name in names:
        try:
            path = _cached(model, commit, name) or _download(model, commit, name, show)
        except UserError:
            raise
        except Exception as error:  # the hub's client raises many kinds
            raise UserError(
                f"{model} at {commit[:12]}: {name} could not be downloaded ({_reason(error)}); go online, or download "
                "it elsewhere and name that directory"
            ) from error
        blob = path.parent / path.readlink() if path.is_symlink() else path
        if HASH.fullmatch(blob.name) and (actual := _hash(blob, blob.name)) != blob.name:
            raise UserError(f"{os.path.normpath(blob)}: corrupt (its hash is {actual}); delete it and run again")
        folder = path.parent
    return folder


def _cached(model: str, commit: str, name: str) -> Path | None:
    path = try_to_load_from_cache(model, name, revision=commit)
    return Path(path) if isinstance(path, str) else None


def _download(model: str, commit: str, name: str, show: bool) -> Path:
    url = hf_hub_url(model, name, revision=commit)
    about = get_hf_file_metadata(url)
    etag = about.etag or ""
    if about.commit_hash != commit or about.size is None or not HASH.fullmatch(etag):
        raise UserError(
            f"{http.public(url)}: answers with commit {about.commit_hash}, hash {about.etag} and size {about.size}, unlike the "
            "hub; check HF_ENDPOINT"
        )
    cache, folder = Path(constants.HF_HUB_CACHE), f"models--{model.replace('/', '--')}"
    blob = cache / folder / "blobs" / etag
    with alone(cache / ".locks" / folder / f"{etag}.lfm.lock", waiting=name):
        if not blob.exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            part = blob.with_name(f"{etag}.lfm.incomplete")
            with part.open("ab") as file, Progress(about.size, name, "B", show) as progress:
                _fetch(url, file, about.size, progress)
            if (actual := _hash(part, etag)) != etag:
                size = part.stat().st_size
                part.unlink()
                raise UserError(
                    f"{http.public(url)}: received {size:,} bytes with hash {actual} instead of {etag}; run again"
                )
            part.replace(blob)
    return Path(hf_hub_download(model, name, revision=commit))  # links the blob under its name


def _fetch(url: str, file: BinaryIO, size: int, progress: Progress) -> None:
    """Append what a file lacks, again and again while connections break but come further."""
    if file.seek(0, os.SEEK_END) > size:
        file.truncate(file.seek(0))
    have = most = file.tell()
    retries = http.RETRIES  # in a row that come no further
    progress.advance(have)
    with http.session() as client:
        while have < size:
            broken: HTTPError = ProtocolError("the connection ended")
            try:
                _append(client, url, file, size, progress)
            except HTTPError as error:
                broken = error
            have = file.seek(0, os.SEEK_END)
            if have < size:
                retries = (http.RETRIES if have > most else retries).increment("GET", url, error=broken)
                retries.sleep()
            most = max(most, have)


def _append(client: requests.Session, url: str, file: BinaryIO, size: int, progress: Progress) -> None:
    start = file.tell()
    headers = {**build_hf_headers(), "Range": f"bytes={start}-"}
    with client.get(url, headers=headers, stream=True, timeout=http.TIMEOUT_S) as answer:
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial:  # the whole file, asked for or not
            file.truncate(file.seek(0))
            progress.advance(-start)
        for part in http.chunks(answer):
            file.write(part)
            progress.advance(len(part))
            if file.tell() > size:  # the hash will not match
                return


def _hash(path: Path, like: str) -> str:
    """Of a file's content: sha256, or git's sha1 where `like` is one."""
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: git if len(like) == 40 else hashlib.sha256()).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and the cache in {constants.HF_HUB_CACHE} does not hold it"
    if isinstance(error, GatedRepoError):
        return "it is gated: accept its terms on its page and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such model, or it is private and needs HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such commit"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return "there is no such file"
    return http.reason(error)

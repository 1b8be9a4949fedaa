"""Fetching files whose checksums are known, from a mirror of the user's or the publisher's."""

import hashlib
import os
import time
from collections.abc import Iterable

import requests

from pipeline.errors import UserError
from pipeline.paths import user_path
from pipeline.progress import Progress, say

MIRROR = "LFM_MIRROR"
TRIES, TIMEOUT_S = 3, 20


def fetch(dataset: str, name: str, md5: str, mirrors: Iterable[str], show: bool) -> bytes:
    """The bytes of one file, from the first place that has them whole.

    `LFM_MIRROR` (a directory or a URL; `<mirror>/<dataset>/<name>`, then `<mirror>/<name>`) is tried before `mirrors`.
    Raises `UserError` that names the file, what each place answered, and the ways out.
    """
    own = os.environ.get(MIRROR, "")
    own_places = [f"{own.rstrip('/')}/{tail}" for tail in (f"{dataset}/{name}", name)] if own else []
    answers = []
    for place in [*own_places, *(f"{m.rstrip('/')}/{name}" for m in mirrors)]:
        try:
            data = (
                _get(place, name, show) if place.startswith(("http://", "https://")) else user_path(place).read_bytes()
            )
        except (OSError, requests.RequestException) as error:
            answers.append(f"{place}: {_reason(error)}")
            continue
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found == md5:
            return data
        answers.append(f"{place}: md5 {found} of {len(data):,} bytes, damaged or another file")
    raise UserError(
        f"{name} (expected md5 {md5}) could not be fetched. Tried {'; '.join(answers)}. "
        f"Ways out: go online, or set {MIRROR} to a directory or URL that holds it, or set data.dataset: digits in "
        "params.yaml, which needs no download"
    )


def _get(url: str, name: str, show: bool) -> bytes:
    for attempt in range(1, TRIES + 1):
        try:
            with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT_S) as answer:
                answer.raise_for_status()
                total = int(answer.headers.get("Content-Length", 0))
                parts = []
                with Progress(total, name, "B", show) as progress:
                    for part in answer.iter_content(1 << 16):
                        parts.append(part)
                        progress.advance(len(part))
                return b"".join(parts)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            if attempt == TRIES:
                raise
            say(f"{url}: {_reason(error)}; trying again")
            time.sleep(attempt)
    raise AssertionError("unreachable")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code}"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.Timeout):
        return f"no answer in {TIMEOUT_S} s"
    return " ".join(str(error).split())

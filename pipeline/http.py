"""HTTP for downloads whose checksums are known: retries, bytes as they were sent, and why a download failed.

Nothing here changes a result: the callers compare checksums.
"""

import errno
import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import exceptions
from urllib3.util import Retry

from pipeline.progress import Progress, log

TIMEOUT_S, CHUNK = 20, 1 << 16
ERRORS = (OSError, ValueError, exceptions.HTTPError, http.client.HTTPException)  # what a request may raise


class LoggedRetry(Retry):
    """urllib3's, with a line in the log before each further try."""

    def increment(self, *args: Any, **kwargs: Any) -> "LoggedRetry":
        """Raises `MaxRetryError` where there are no tries left."""
        left = super().increment(*args, **kwargs)
        error = kwargs.get("error")
        why = reason(error) if error else f"the server answered {kwargs['response'].status}"
        log.info("download: %s; trying again", why)
        return left


RETRIES = LoggedRetry(
    3,
    other=0,  # a certificate that is refused, say
    status_forcelist=(429, 500, 502, 503, 504),
    backoff_factor=0.5,
    retry_after_max=30,
    raise_on_status=False,
)


def session() -> requests.Session:
    """A session that tries again after broken connections and the answers of a busy server."""
    new = requests.Session()
    new.headers["Accept-Encoding"] = "identity"
    new.verify = os.environ.get("SSL_CERT_FILE") or True  # REQUESTS_CA_BUNDLE comes before it
    for scheme in ("http://", "https://"):
        new.mount(scheme, HTTPAdapter(max_retries=RETRIES))
    return new


def chunks(answer: requests.Response) -> Iterator[bytes]:
    """The body as it was sent, whatever its Content-Encoding says. Raises urllib3's errors."""
    while part := answer.raw.read(CHUNK, decode_content=False):
        yield part


def get(url: str, name: str, limit: int, show: bool) -> bytes:
    """A file of at most `limit` bytes. Raises one of `ERRORS`."""
    retries = RETRIES
    with session() as client:
        while True:
            with client.get(url, stream=True, timeout=TIMEOUT_S) as answer:
                answer.raise_for_status()
                try:
                    return _body(answer, name, limit, show)
                except exceptions.HTTPError as error:
                    retries = retries.increment("GET", url, error=error)
            retries.sleep()


def _body(answer: requests.Response, name: str, limit: int, show: bool) -> bytes:
    length = answer.headers.get("Content-Length", "")
    total = int(length) if length.isascii() and length.isdecimal() and len(length) < 16 else 0
    body = bytearray()
    with Progress(total, name, "B", show) as progress:
        for part in chunks(answer):
            body += part
            progress.advance(len(part))
            if len(body) > limit:
                raise OSError(errno.EFBIG, f"more than {limit:,} bytes, too many for this file")
    return bytes(body)


def public(url: str) -> str:
    """An address without what may be secret: user name, password, query."""
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        return f"{url.partition(':')[0]}://…"


CERTIFICATES = "name the file of your certificate authority in REQUESTS_CA_BUNDLE or SSL_CERT_FILE"
CAUSES: tuple[tuple[Any, str], ...] = (
    (ssl.SSLCertVerificationError, f"its certificate is not trusted; {CERTIFICATES}"),
    (ssl.SSLError, "no secure connection (TLS); check that the address should begin with https"),
    ((requests.exceptions.ProxyError, exceptions.ProxyError), "the proxy does not answer; check HTTPS_PROXY and HTTP_PROXY"),
    ((socket.gaierror, exceptions.NameResolutionError), "its host name is unknown"),
    ((exceptions.NewConnectionError, ConnectionRefusedError), "no connection"),
    ((requests.Timeout, exceptions.TimeoutError, TimeoutError), f"no answer in {TIMEOUT_S} s"),
    ((exceptions.ProtocolError, http.client.HTTPException, ConnectionError), "the connection broke"),
    (exceptions.InvalidHeader, "its headers contradict each other"),
    ((ValueError, exceptions.LocationValueError), "no valid address, or a redirect to one that is none"),
    (requests.ConnectionError, "no connection"),
)  # fmt: skip


def reason(error: BaseException) -> str:
    """Why a request failed. Never its own words: they may hold an address with a password."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 407 or "Tunnel connection failed: 407" in str(error):
        return "the proxy asks for a user name and password (407); put them into HTTPS_PROXY or HTTP_PROXY"
    if isinstance(error, requests.TooManyRedirects):
        return "too many redirects"
    if status is not None:
        return f"the server answered {status}"
    causes = _causes(error)
    for kinds, words in CAUSES:
        if any(isinstance(cause, kinds) for cause in causes):
            return words
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return " ".join((error.strerror or str(error)).split())
    return type(error).__name__


def _causes(error: BaseException) -> list[BaseException]:
    """An error and all that it was raised from."""
    causes = [error]
    for cause in causes:
        inner = (*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__)
        causes += [e for e in inner if isinstance(e, BaseException) and e not in causes]
    return causes

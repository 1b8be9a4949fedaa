"""Downloads: which mirrors serve, what is tried again, and why a download failed, with no secret in it."""

import gzip
import hashlib
import http.server
import ssl
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from pipeline.errors import UserError
from pipeline.params import DataParams, load_params
from pipeline.sources import idx
from pipeline.sources.datasets import DATASETS
from pipeline.sources.download import Published, fetch
from tests.conftest import ROOT, Case, Scene, Server, send

CONTENT = b"\0\0\x08\x01\0\0\0\x02ab"
PACKED = gzip.compress(CONTENT, mtime=0)
MD5, SHA256 = hashlib.md5(PACKED, usedforsecurity=False).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
FILE = Published("mnist", "MNIST", "a.gz", MD5, SHA256)
Request = http.server.BaseHTTPRequestHandler


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- mirrors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", ["", "MNIST", "MNIST/raw", "MNIST/processed"])
def test_a_mirror_may_be_any_directory_around_the_files(scene: Scene, mirror: str) -> None:
    put(scene.tmp / "MNIST/raw/a.gz", PACKED)
    (scene.tmp / "MNIST/processed").mkdir()
    scene.patch.setenv("DVC_ROOT", str(scene.tmp))  # relative paths start where DVC was started
    path = str(scene.tmp / mirror)
    for place in (path, f"file://{path}", f"FILE://{path}/", mirror or "."):
        scene.patch.setenv("LFM_MIRROR", place)
        assert fetch(FILE, [], False) == CONTENT


@pytest.mark.parametrize(
    "data", [PACKED, CONTENT, gzip.compress(CONTENT, 1, mtime=5)], ids=["original", "unpacked", "re-packed"]
)
@pytest.mark.parametrize("name", ["a.gz", "a", "a.idx1-ubyte", "download(1)"])
def test_a_file_in_a_mirror_is_recognised_by_its_content(scene: Scene, name: str, data: bytes) -> None:
    put(scene.tmp / "a.gz", b"<html>")
    put(scene.tmp / "b.gz", gzip.compress(b"\0\0\x08 another file"))
    put(scene.tmp / name, data)
    scene.patch.setenv("LFM_MIRROR", str(scene.tmp))
    assert fetch(FILE, [], False) == CONTENT


@pytest.mark.parametrize("name", ["/mnist/a.gz", "/a.gz", "/MNIST/raw/a.gz", "/a", "/mnist/a"])
def test_a_mirror_is_a_url_with_any_of_these_paths(scene: Scene, name: str) -> None:
    scene.server.files = {name: CONTENT if name.endswith("a") else PACKED}
    for address in (scene.server.address, scene.server.address.upper() + "/"):
        scene.patch.setenv("LFM_MIRROR", address)
        assert fetch(FILE, [], False) == CONTENT


def test_the_publishers_follow_the_mirror_and_are_tried_in_turn(scene: Scene) -> None:
    scene.server.files = {"/here/a.gz": PACKED}
    scene.patch.setenv("LFM_MIRROR", str(scene.tmp))
    assert fetch(FILE, [f"{scene.server.address}/none", f"{scene.server.address}/here/"], False) == CONTENT
    assert scene.server.asked == ["GET /none/a.gz", "GET /here/a.gz"]


def test_mnist_of_the_mirror_is_found_unpacked_and_renamed(mirror: str, scene: Scene) -> None:
    p: DataParams = load_params(ROOT / "params.yaml").data
    scene.patch.setenv("LFM_MIRROR", mirror)
    whole = DATASETS["mnist"](p, False)
    for i, packed in enumerate(sorted(Path(mirror).glob("*.gz"))):
        put(scene.tmp / f"MNIST/raw/{i}", gzip.decompress(packed.read_bytes()))
    scene.patch.setenv("LFM_MIRROR", str(scene.tmp))
    again = DATASETS["mnist"](p, False)
    assert np.array_equal(whole.train.images, again.train.images)
    assert np.array_equal(whole.test.labels, again.test.labels)


# --- HTTP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{"Content_Length": length} for length in ("", "abc", "-5", "1e3")]  # an unknown total
    + [
        {"Content_Encoding": "gzip"},
        {"Content_Encoding": "gzip", "Content_Length": "", "Transfer_Encoding": "chunked"},
    ],
)
def test_bytes_are_taken_as_sent_whatever_the_headers_say(server: Server, headers: dict[str, str]) -> None:
    def answer(request: Request) -> None:
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PACKED), PACKED)
        send(request, 200, chunked if "Transfer_Encoding" in headers else PACKED, **headers)
        request.close_connection = True

    server.answer = answer
    assert fetch(FILE, [server.address], False) == CONTENT


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again_after_what_it_says(
    server: Server, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited = list[float]()
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waited.append)
    numbers = count()
    server.answer = lambda request: (
        send(request, status, Retry_After="7") if next(numbers) < 2 else send(request, 200, PACKED)
    )
    assert fetch(FILE, [server.address], False) == CONTENT
    assert waited == [7, 7] and capsys.readouterr().err.count(f"the server answered {status}; trying again") == 2


def test_a_broken_connection_is_tried_again(server: Server) -> None:
    numbers = count()

    def answer(request: Request) -> None:
        send(request, 200, PACKED if next(numbers) == 2 else PACKED[:5], Content_Length=str(len(PACKED)))
        request.close_connection = True

    server.answer = answer
    assert fetch(FILE, [server.address], False) == CONTENT and len(server.asked) == 3


def test_an_endless_answer_stops_at_the_largest_size(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "LARGEST", 1 << 20)
    sent = list[int]()

    def answer(request: Request) -> None:
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        while sum(sent) < 1 << 27:
            sent.append(request.wfile.write(bytes(1 << 16)))

    server.answer = answer
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        fetch(FILE, [server.address], False)
    assert sum(sent) < 1 << 25


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_either_variable_names_ones_own_certificate_authority(scene: Scene, variable: str) -> None:
    scene.patch.setenv(variable, "none.pem")
    with pytest.raises(UserError, match=r"TLS CA certificate bundle, invalid path: none\.pem"):
        fetch(FILE, ["https://127.0.0.1:1"], False)


SECRET = "s3cret"


@pytest.mark.parametrize("status", [200, 404, 503, None])
def test_no_password_or_token_is_printed(
    server: Server, status: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = list[str]()

    def answer(request: Request) -> None:
        asked.append(f"{request.path} {request.headers.get('Authorization')}")
        send(request, status or 200, b"<html>")

    server.answer = answer
    address = server.address if status else "http://127.0.0.1:1"
    monkeypatch.setenv("LFM_MIRROR", f"{address.replace('//', f'//user:{SECRET}@')}/x?token={SECRET}")
    with pytest.raises(UserError) as error:
        fetch(FILE, [], False)
    assert SECRET not in str(error.value) + capsys.readouterr().err
    assert f"{address}/x/mnist/a.gz: " in str(error.value)
    assert all(f"?token={SECRET} Basic" in line for line in asked) and bool(asked) == bool(status)


# --- what is refused ---------------------------------------------------------------------------------------------------


def from_server(answer: Callable[[Request], object]) -> Case:
    def act(scene: Scene) -> None:
        scene.server.answer = lambda request: (answer(request), None)[1]
        fetch(FILE, [scene.server.address], False)

    return UserError, "a.gz", act


def from_mirror(
    mirror: str,
    files: dict[str, bytes] | None = None,
    status: int = 404,
    sha256: str | None = SHA256,
    **environment: str,
) -> Case:
    def act(scene: Scene) -> None:
        scene.server.answer = lambda request: send(request, status)
        for name, data in (files or {}).items():
            put(scene.tmp / name, data)
        scene.patch.setenv("LFM_MIRROR", mirror.replace("SERVER", scene.server.address))
        for name, value in environment.items():
            scene.patch.setenv(name, value.replace("SERVER", scene.server.address))
        fetch(FILE._replace(sha256=sha256), [], False)

    return UserError, "a.gz", act


def redirect(target: str) -> Case:
    return from_server(lambda request: send(request, 302, Location=target))


def cut(request: Request) -> None:
    send(request, 200, PACKED[:9], Content_Length="99")
    request.close_connection = True


def raised(error: Exception) -> Case:
    """An error of the client that takes a server of another kind, or patience, to meet."""

    def act(scene: Scene) -> None:
        def get(*_: Any, **__: Any) -> None:
            raise error

        scene.patch.setattr(requests.Session, "get", get)
        fetch(FILE, ["https://host.invalid"], False)

    return UserError, "a.gz", act


def packed(content: bytes) -> Callable[[Scene], object]:
    return lambda scene: idx.parse("a.gz", idx.unpack("a.gz", gzip.compress(content)))


ERRORS: dict[str, Case] = {
    "download, 404": from_server(lambda request: send(request, 404)),
    "download, 503": from_server(lambda request: send(request, 503)),
    "download, another file": from_server(lambda request: send(request, 200, b"<html>")),
    "download, connection cut": from_server(cut),
    "download, lengths that differ": from_server(lambda request: send(request, 200, PACKED, Content_Length="1, 2")),
    "download, no HTTP": from_server(lambda request: request.wfile.write(b"garbage\r\n\r\n")),
    "download, redirect to itself": redirect("/a.gz"),
    **{f"download, redirect to {target[:20]!r}": redirect(target) for target in (
        "http://[::1", "http://", "http://a..b/", "http://" + "x" * 300, "ftp://host/a", "http://host:99999/", "http://%", "//")},
    "download, no connection": from_mirror("http://127.0.0.1:1"),
    "download, no such host": from_mirror("http://host.invalid"),
    "download, not a URL": from_mirror("http://["),
    "download, proxy wants a password": from_mirror("http://host.invalid", status=407, NO_PROXY="", http_proxy="SERVER"),
    "download, no proxy there": from_mirror("http://host.invalid", NO_PROXY="", http_proxy="http://user:s3cret@127.0.0.1:1"),
    "download, TLS where there is none": raised(requests.exceptions.SSLError(ssl.SSLError(1, "WRONG_VERSION_NUMBER"))),
    "download, timeout": raised(requests.ReadTimeout("…")),
    "download, certificate": raised(requests.exceptions.SSLError(ssl.SSLCertVerificationError(1, "self-signed"))),
    "download, HTTPS through a proxy that wants a password": raised(
        requests.exceptions.ProxyError("Tunnel connection failed: 407 Proxy Authentication Required")),
    "mirror, FTP": from_mirror("ftp://user:s3cret@host/a"),
    "mirror, no directory": from_mirror("none"),
    "mirror, a file": from_mirror("a.gz", {"a.gz": PACKED}),
    "mirror, empty": from_mirror("."),
    "mirror, no such user": from_mirror("~nosuchuser/x"),
    "mirror, other files": from_mirror(".", dict.fromkeys(("a.zip", "b", "c", "d", "e", "f"), b"x")),
    "mirror, unpacked, of unknown content": from_mirror(".", {"a": CONTENT}, sha256=None),
    "mirror, corrupt": from_mirror(".", {"mnist/a.gz": PACKED[:-3]}),
    "IDX, cut gzip": (UserError, "a.gz", lambda scene: idx.unpack("a.gz", PACKED[:-9])),
    "IDX, another kind": (UserError, "a.gz", packed(b"P5 28")),
    "IDX, empty": (UserError, "a.gz", packed(b"")),
    "IDX, too short": (UserError, "a.gz", packed(CONTENT[:-1])),
    "IDX, header cut": (UserError, "a.gz", packed(CONTENT[:6])),
}  # fmt: skip

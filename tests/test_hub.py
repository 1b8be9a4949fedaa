"""An autoencoder from the Hugging Face hub, played by a local server: what is asked for, what is kept, what is refused.

Each download runs in a process of its own, for huggingface_hub reads its environment once.
"""

import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from lfm.nets import autoencoder
from pipeline.errors import UserError
from stages.autoencoder import FILES, adopt, bring
from tests.conftest import ENVIRONMENT, ROOT

MODEL, COMMIT = "some/vae", "0123456789abcdef0123456789abcdef01234567"
DOWNLOAD = f"""
import sys
from pipeline.errors import UserError
from pipeline.sources.hub import files
try:
    print(files({MODEL!r}, {COMMIT!r}, {FILES!r}, False))
except UserError as error:
    sys.exit(f"error: {{error}}")
"""
CONFIG, WEIGHTS = (f"/{MODEL}/resolve/{COMMIT}/{name}" for name in FILES)


class Hub:
    """What the server knows, what it was asked for, and how it misbehaves."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, list[str]()
        self.breaks = 0  # so many answers end half-way
        self.stalls = threading.Event()  # set: answers stop half-way and wait
        self.half_sent, self.go_on = threading.Event(), threading.Event()
        self.error: tuple[int, str] | None = None
        self.damage, self.ranges = False, True
        self.commit, self.tag = COMMIT, ""  # what it says it serves
        self.address = ""

    def etag(self, path: str) -> str:
        if self.tag:
            return self.tag
        content = self.files[path]
        if path.endswith(".json"):
            return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return hashlib.sha256(content).hexdigest()


def handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            hub.asked.append(f"HEAD {self.path}")
            self.head(0)

        def do_GET(self) -> None:
            if self.path == "/api/agent-harnesses":  # huggingface_hub asks this of its own accord
                self.send_error(404)
                return
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            hub.asked.append(f"GET {self.path} from {start}")
            if self.head(start if hub.ranges else 0):
                self.body(hub.files[self.path][start if hub.ranges else 0 :])

        def head(self, start: int) -> bool:
            status, code = hub.error or ((200, "") if self.path in hub.files else (404, "EntryNotFound"))
            if status >= 400:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return False
            content = hub.files[self.path]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{hub.etag(self.path)}"')
            self.send_header("X-Repo-Commit", hub.commit)
            self.end_headers()
            return True

        def body(self, content: bytes) -> None:
            if hub.damage:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if self.path == WEIGHTS and hub.stalls.is_set():
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                hub.half_sent.set()
                hub.go_on.wait(60)
            elif self.path == WEIGHTS and hub.breaks:
                hub.breaks -= 1
                self.wfile.write(content[: len(content) // 2])
            else:
                self.wfile.write(content)
                return
            self.close_connection = True

    return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    torch.manual_seed(0)
    autoencoder.save(tmp_path / "vae", autoencoder.build(2, 1, 4, [32], 1))
    files = {f"/{MODEL}/resolve/{COMMIT}/{name}": (tmp_path / "vae" / name).read_bytes() for name in FILES}
    played = Hub(files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(played)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        played.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield played
        played.go_on.set()
        server.shutdown()


def start(home: Path, address: str, **environment: str) -> subprocess.Popen[str]:
    own = {"HF_HOME": str(home), "HF_ENDPOINT": address, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"} | environment
    clean = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD], env=clean | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def download(home: Path, address: str, **environment: str) -> str:
    """The folder that was printed, or the error in one line."""
    out, err = start(home, address, **environment).communicate(timeout=300)
    return out.strip() or err.strip().splitlines()[-1]


def taken(hub: Hub) -> list[str]:
    """What was asked for since the last time, but for questions about a file."""
    asked, hub.asked = [a for a in hub.asked if a.startswith("GET")], []
    return asked


def same(folder: str, hub: Hub) -> bool:
    return all(
        (Path(folder) / name).read_bytes() == hub.files[p] for name, p in zip(FILES, (CONFIG, WEIGHTS), strict=True)
    )


def test_a_download_asks_for_two_files_at_the_pinned_commit_and_never_again(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    hub.breaks = 2
    folder = download(home, hub.address)
    size = len(hub.files[WEIGHTS])
    assert folder == str(home / f"hub/models--some--vae/snapshots/{COMMIT}") and same(folder, hub)
    assert {a.split()[1] for a in hub.asked} == {CONFIG, WEIGHTS}, "nothing else was asked for, no .bin and no list"
    # A broken connection is taken up where it ended, in whole blocks of what arrived.
    first, second, third = [int(a.rpartition(" ")[2]) for a in taken(hub) if WEIGHTS in a]
    assert first == 0 and 0 < second <= size // 2 < third < size

    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        assert download(home, hub.address, **environment) == folder
    assert download(home, "http://127.0.0.1:1") == folder
    assert hub.asked == []

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    assert adopt(MODEL, bring(MODEL, COMMIT, False), images).config.in_channels == 4
    blob = (Path(folder) / FILES[1]).resolve()
    blob.write_bytes(hub.files[WEIGHTS][:-1] + b"\xff")
    with pytest.raises(UserError) as error:
        bring(MODEL, COMMIT, False)
    found = hashlib.sha256(blob.read_bytes()).hexdigest()
    assert str(error.value) == f"autoencoder.source: {blob}: damaged (its hash is {found}); delete it and run again"
    blob.unlink()
    assert download(home, hub.address) == folder and same(folder, hub)


def test_a_killed_download_is_taken_up_by_the_next(tmp_path: Path, hub: Hub) -> None:
    hub.stalls.set()
    running = start(tmp_path / "home", hub.address)
    assert hub.half_sent.wait(60)
    half = len(hub.files[WEIGHTS]) // 2
    part = tmp_path / f"home/hub/models--some--vae/blobs/{hub.etag(WEIGHTS)}.lfm.incomplete"
    blocks = half - half % (1 << 16)
    while part.stat().st_size < blocks:
        assert running.poll() is None
    running.kill()
    running.communicate()
    hub.stalls.clear()
    hub.go_on.set()
    taken(hub)
    folder = download(tmp_path / "home", hub.address)
    assert same(folder, hub) and taken(hub) == [f"GET {WEIGHTS} from {blocks}"]
    part.write_bytes(hub.files[WEIGHTS][:100])  # left by another download; a server without ranges sends all
    (Path(folder) / FILES[1]).resolve().unlink()
    hub.ranges = False
    assert same(download(tmp_path / "home", hub.address), hub) and not part.exists()


def test_what_cannot_be_had_is_told_in_one_line(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(name: str, reason: str) -> str:
        return (
            f"error: {MODEL} at 0123456789ab: {name} could not be downloaded ({reason}); go online, or download it elsewhere "
            "and name that directory"
        )

    home = tmp_path / "home"
    offline = f"HF_HUB_OFFLINE is set, and the cache in {home}/hub has none"
    assert download(home, hub.address, HF_HUB_OFFLINE="1") == told(FILES[0], offline)
    assert download(home, "http://127.0.0.1:1").startswith(told(FILES[0], "ConnectError: ").partition(")")[0])
    for error, reason in {
        (401, "RepoNotFound"): "there is no such model, or it is private and wants HF_TOKEN",
        (403, "GatedRepo"): "it is gated: accept its terms on its page and set HF_TOKEN",
        (404, "RevisionNotFound"): "there is no such commit",
        (500, ""): "the server answered 500",
    }.items():
        hub.error = error
        assert download(home, hub.address) == told(FILES[0], reason)
    hub.error, hub.damage = None, True
    spoilt = hub.files[CONFIG][:-1] + bytes([hub.files[CONFIG][-1] ^ 1])
    found = hashlib.sha1(b"blob %d\0" % len(spoilt) + spoilt, usedforsecurity=False).hexdigest()
    assert download(home, hub.address) == (
        f"error: {hub.address}{CONFIG}: {len(spoilt):,} bytes came whose hash is {found}, not {hub.etag(CONFIG)}; run again"
    )
    hub.damage = False
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("pipeline.sources.hub.time.sleep", lambda seconds: None)
    for commit, tag in (("f" * 40, ""), (COMMIT, "../../../elsewhere")):
        hub.commit, hub.tag = commit, tag
        with pytest.raises(UserError) as other:
            bring(MODEL, COMMIT, False)
        assert str(other.value) == (
            f"autoencoder.source: {hub.address}{CONFIG}: answers with commit {commit}, hash {hub.etag(CONFIG)} and size "
            f"{len(hub.files[CONFIG])}, not as the hub would; see HF_ENDPOINT"
        )
    hub.commit, hub.tag = COMMIT, ""
    hub.breaks = 10**6  # until not even a block comes
    with pytest.raises(UserError) as broken:
        bring(MODEL, COMMIT, False)
    assert str(broken.value).startswith(
        f"autoencoder.source: {MODEL} at 0123456789ab: {FILES[1]} could not be downloaded (ConnectionError: "
    )
    part = f"{hub.etag(WEIGHTS)}.lfm.incomplete"
    del hub.files[WEIGHTS]
    assert download(home, hub.address) == told(FILES[1], "there is no such file")
    assert [f.name for f in home.rglob("*incomplete*")] == [part], "what came before the connection broke is kept"

"""An autoencoder from the Hugging Face hub, played by a local server: what is asked for, what is kept, what is refused.

A download that must succeed runs in a process of its own, for huggingface_hub reads its environment once.
"""

import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from lfm.nets import autoencoder
from pipeline.errors import UserError
from stages.autoencoder import FILES, adopt, bring
from tests.conftest import ENVIRONMENT, ROOT, Case, Scene, Server, send

MODEL, COMMIT = "some/vae", "0123456789abcdef0123456789abcdef01234567"
DOWNLOAD = f"""
from pipeline.hub import files
print(files({MODEL!r}, {COMMIT!r}, {FILES!r}, False))
"""
CONFIG, WEIGHTS = (f"/{MODEL}/resolve/{COMMIT}/{name}" for name in FILES)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class Hub:
    """What the hub knows, what it was asked for, and how it misbehaves."""

    def __init__(self, server: Server, files: dict[str, bytes]) -> None:
        self.files, self.asked, self.address = files, list[str](), server.address
        self.breaks = 0  # so many answers end half-way
        self.stalls = threading.Event()  # set: answers stop half-way and wait
        self.half_sent, self.go_on = threading.Event(), threading.Event()
        self.error: tuple[int, str] | None = None
        self.damage, self.ranges, self.endless = False, True, False
        self.commit, self.tag = COMMIT, ""  # what it says it serves
        self.headers = dict[str, str]()  # besides
        server.answer = self.answer

    def etag(self, path: str) -> str:
        content = self.files[path]
        return self.tag or (git_sha1(content) if path.endswith(".json") else hashlib.sha256(content).hexdigest())

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path
        if path == "/api/agent-harnesses":  # huggingface_hub asks this of its own accord
            return send(request, 404)
        ranges = self.ranges and request.command == "GET"
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")) if ranges else 0
        self.asked.append(f"{request.command} {path} from {start}")
        status, code = self.error or ((206 if start else 200, "") if path in self.files else (404, "EntryNotFound"))
        if status >= 400:
            return send(request, status, X_Error_Code=code)
        content = self.files[path][start:]
        if self.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"ETag": f'"{self.etag(path)}"', "X_Repo_Commit": self.commit, "Content_Length": str(len(content))}
        headers |= self.headers
        half = path == WEIGHTS and request.command == "GET" and (self.stalls.is_set() or self.breaks > 0)
        if self.endless and request.command == "GET":
            headers["Content_Length"], content = str(10**9), content + bytes(1 << 22)
        send(request, status, content[: len(content) // 2] if half else content, **headers)
        if half and self.stalls.is_set():
            request.wfile.flush()
            self.half_sent.set()
            self.go_on.wait(60)
        elif half:
            self.breaks -= 1
        request.close_connection = half or self.endless
        return None


def play(server: Server, folder: Path) -> Hub:
    torch.manual_seed(0)
    autoencoder.save(folder, autoencoder.build(2, 1, 4, [32], 1))
    return Hub(
        server, {path: (folder / name).read_bytes() for path, name in zip((CONFIG, WEIGHTS), FILES, strict=True)}
    )


@pytest.fixture
def hub(tmp_path: Path, server: Server) -> Hub:
    return play(server, tmp_path / "vae")


def start(home: Path, address: str, script: str = DOWNLOAD, **environment: str) -> subprocess.Popen[str]:
    own = {"HF_HOME": str(home), "HF_ENDPOINT": address, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"} | environment
    clean = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=clean | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def download(home: Path, address: str, **environment: str) -> str:
    """The folder that was printed, or the error in one line."""
    out, err = start(home, address, **environment).communicate(timeout=300)
    return out.strip() or err.strip().splitlines()[-1]


def requested(hub: Hub) -> list[str]:
    """The GET requests since the last call."""
    asked, hub.asked = [a for a in hub.asked if a.startswith("GET")], []
    return asked


def same(folder: str, hub: Hub) -> bool:
    return [(Path(folder) / name).read_bytes() for name in FILES] == [hub.files[path] for path in (CONFIG, WEIGHTS)]


def test_a_download_asks_for_two_files_at_the_pinned_commit_and_never_again(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    hub.breaks = 2
    folder = download(home, hub.address)
    size = len(hub.files[WEIGHTS])
    assert folder == str(home / f"hub/models--some--vae/snapshots/{COMMIT}") and same(folder, hub)
    assert {a.split()[1] for a in hub.asked} == {CONFIG, WEIGHTS}, "nothing else was asked for, no .bin and no list"
    # A broken connection is resumed where it ended, in whole blocks of what arrived.
    first, second, third = [int(a.rpartition(" ")[2]) for a in requested(hub) if WEIGHTS in a]
    assert first == 0 and 0 < second <= size // 2 < third < size

    for address, environment in ((hub.address, {}), (hub.address, {"HF_HUB_OFFLINE": "1"}), ("http://127.0.0.1:1", {})):
        assert download(home, address, **environment) == folder and hub.asked == []

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    assert adopt(MODEL, bring(MODEL, COMMIT, False), images).config.in_channels == 4
    blob = (Path(folder) / FILES[1]).resolve()
    blob.write_bytes(hub.files[WEIGHTS][:-1] + b"\xff")
    with pytest.raises(UserError) as error:
        bring(MODEL, COMMIT, False)
    assert f"autoencoder.source: {blob}: " in str(error.value) and "delete it" in str(error.value)
    blob.unlink()
    assert download(home, hub.address) == folder and same(folder, hub)


def test_bytes_are_taken_as_sent_whatever_the_headers_say(tmp_path: Path, hub: Hub) -> None:
    hub.headers = {"Content_Encoding": "gzip", "Content_Type": "text/html; charset=odd"}
    assert same(download(tmp_path / "home", hub.address), hub)


def test_an_autoencoder_may_lie_in_a_folder_of_a_repository(tmp_path: Path, hub: Hub) -> None:
    hub.files = {path.replace(COMMIT, f"{COMMIT}/vae"): content for path, content in hub.files.items()}
    script = f"from stages.autoencoder import bring; print(bring({MODEL + '/vae'!r}, {COMMIT!r}, False))"
    out, err = start(tmp_path / "home", hub.address, script).communicate(timeout=300)
    assert out.strip() == str(tmp_path / f"home/hub/models--some--vae/snapshots/{COMMIT}/vae"), err
    assert [(Path(out.strip()) / name).read_bytes() for name in FILES] == list(hub.files.values())


def test_a_killed_download_is_resumed_by_the_next(tmp_path: Path, hub: Hub) -> None:
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
    requested(hub)
    folder = download(tmp_path / "home", hub.address)
    assert same(folder, hub) and requested(hub) == [f"GET {WEIGHTS} from {blocks}"]
    part.write_bytes(hub.files[WEIGHTS][:100])  # left by another download; a server without ranges sends all
    (Path(folder) / FILES[1]).resolve().unlink()
    hub.ranges = False
    assert same(download(tmp_path / "home", hub.address), hub) and not part.exists()


# --- what is refused ---------------------------------------------------------------------------------------------------


def from_hub(
    act: Callable[[Hub], object] = lambda hub: None, key: str = "source", revision: str = COMMIT, offline: bool = False,
    **misbehaviour: object,
) -> Case:  # fmt: skip
    """A model of a hub that misbehaves, its cache in the working directory."""

    def bring_it(scene: Scene) -> None:
        hub = play(scene.server, scene.tmp / "vae")
        vars(hub).update(misbehaviour)
        act(hub)
        scene.patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        scene.patch.setattr(constants, "HF_HUB_CACHE", str(scene.tmp / "hub"))
        address = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        scene.patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        bring(MODEL, revision, False)

    return UserError, f"autoencoder.{key}", bring_it


ERRORS: dict[str, Case] = {
    "hub, no such model": from_hub(error=(401, "RepoNotFound")),
    "hub, gated": from_hub(error=(403, "GatedRepo")),
    "hub, no such commit": from_hub(error=(404, "RevisionNotFound")),
    "hub, 500": from_hub(error=(500, "")),
    "hub, no such file": from_hub(lambda hub: hub.files.pop(WEIGHTS)),
    "hub, damaged on the way": from_hub(damage=True),
    "hub, endless": from_hub(endless=True),
    "hub, connections that break": from_hub(breaks=10**6),  # until not even a block comes
    "hub, another commit": from_hub(commit="f" * 40),
    "hub, no hash": from_hub(tag="../../../elsewhere"),
    "hub, no connection": from_hub(address="http://127.0.0.1:1"),
    "hub, offline": from_hub(offline=True),
    "hub, no commit": from_hub(offline=True, key="revision", revision="main"),
}

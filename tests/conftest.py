"""What tests share: the tiny pipeline, run once, and real MNIST where a mirror is given."""

import http.server
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from filelock import FileLock
from threadpoolctl import threadpool_limits

from pipeline import http as transfer
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import IMAGES, IMAGES_FORMAT, SPLITS
from tools.workspace import make_workspace

ROOT = Path(__file__).resolve().parent.parent
# One thread: the tiny models are too small for two, and the figures don't depend on what else the machine does.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "LFM_"))} | {"OMP_NUM_THREADS": "1"}
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other core has tests of its own
    threadpool_limits(1)


def heed_signals() -> None:
    """In a new process: undo what nohup, or a shell that starts its jobs in the background, has set to be ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, its output as text."""
    return subprocess.run(words, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=540)


def repro(workspace: Path) -> str:
    """`dvc repro` that must succeed; returns what it printed."""
    result = command("dvc", "repro", cwd=workspace)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write_noise(train: int, others: int, size: tuple[int, int] = (28, 28)) -> None:
    """An images.h5 of grey noise with two labels, in the working directory: so many images to train on, and for each other
    split."""
    g = np.random.default_rng(0)
    with arrays.writing(IMAGES) as out:
        for split, n in zip(SPLITS, (train, others, others), strict=True):
            out.add(f"{split}/images", g.integers(0, 256, (n, 1, *size), dtype=np.uint8))
            out.add(f"{split}/labels", (np.arange(n) % 2).astype(np.uint8))
        checksums = {"train_sha256": "0" * 64, "test_sha256": "1" * 64}
        out.attributes(format=IMAGES_FORMAT, dataset="noise", classes=2, **checksums)


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two workspaces in which the whole pipeline has run from scratch with presets/tiny, at the same time.

    The first of pytest's processes makes them, for all.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    first, second = base / "tiny", base / "another/place"
    with FileLock(base / "twins.lock"):
        if not first.exists():
            for workspace in (first, second):
                make_workspace(ROOT, workspace, ROOT / "presets/tiny")
            with ThreadPoolExecutor() as pool:
                for output in pool.map(repro, (first, second)):
                    assert output.count("Running stage") == 9
    return first, second


@pytest.fixture(scope="session")
def tiny(twins: tuple[Path, Path]) -> Path:
    """A workspace in which the whole pipeline has run, to read from alone."""
    return twins[1]


@pytest.fixture(scope="session")
def changeable(twins: tuple[Path, Path]) -> Path:
    """Another one, for the tests of test_pipeline.py alone, which run one after the other: each puts back what it changes."""
    return twins[0]


class Server:
    """A local HTTP server: what it holds, what it was asked for, and `answer`, which a test may replace."""

    def __init__(self, address: str) -> None:
        self.address, self.files, self.asked = address, dict[str, bytes](), list[str]()
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None] = self.serve

    def serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """The file of that path, or 404."""
        body = self.files.get(request.path)
        send(request, 404 if body is None else 200, body or b"")


def send(request: http.server.BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """An answer; underscores in the names of headers are hyphens."""
    request.send_response(status)
    for name, value in ({"Content_Length": str(len(body))} | headers).items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """It is reached without a proxy, and tried again without waiting."""
    monkeypatch.setattr(transfer, "RETRIES", transfer.RETRIES.new(backoff_factor=0))
    proxies = "http_proxy HTTP_PROXY https_proxy HTTPS_PROXY"
    for name in f"{proxies} LFM_MIRROR SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE".split():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            playing.asked.append(f"{self.command} {self.path}")
            playing.answer(self)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        playing = Server(f"http://127.0.0.1:{running.server_address[1]}")
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield playing
        running.shutdown()


class Scene(NamedTuple):
    """What a case of an error may use; its working directory is `tmp`."""

    tmp: Path
    patch: pytest.MonkeyPatch
    server: Server


# An error's class, the key or file that it must name, and what raises it.
Case = tuple[type[Exception], str, Callable[[Scene], object]]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Scene:
    monkeypatch.chdir(tmp_path)
    return Scene(tmp_path, monkeypatch, server)


@pytest.fixture(scope="session")
def mirror() -> str:
    """Where the tests find real MNIST: the setting that a user has."""
    place = os.environ.get("LFM_MIRROR")
    if not place:
        pytest.skip("LFM_MIRROR is not set: tests on real MNIST need a directory or URL with its four files")
    return place

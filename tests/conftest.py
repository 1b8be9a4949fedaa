"""What tests share: the tiny pipeline, run once, and real MNIST where a mirror is given."""

import atexit
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from threadpoolctl import threadpool_limits

from lfm.model import LatentFlow
from pipeline import http as transfer
from pipeline import run as runner
from pipeline.artifacts import hdf5, images
from pipeline.machine import fingerprint
from pipeline.params import Params, load_yaml, validate_params
from pipeline.run import Context
from pipeline.sources import datasets
from tools.workspace import apply, make_workspace, read_preset

ROOT = Path(__file__).resolve().parent.parent
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# One thread: the tiny models are too small for two, and the figures don't depend on what else the machine does.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "LFM_"))} | {"OMP_NUM_THREADS": "1"}
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other core has tests of its own
    threadpool_limits(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that are loaded later, such as scipy's BLAS


# Files whose tests take longest: they begin first, so that no process is left with one when the other has nothing to do.
LONG = [
    "experiments", "pipeline", "real_tree", "page", "torture", "faults", "report", "examples", "wheel", "artifacts", "setup",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: names.get(item.path.name, len(names)))


def heed_signals() -> None:
    """In a new process: undo what nohup, or a shell that starts its jobs in the background, has set to be ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@cache
def warm() -> dict[str, str]:
    """The environment in which `python -m` and `dvc` start at once: see tests/warm.py."""
    folder = Path(tempfile.mkdtemp(prefix="lfm-warm-"))
    words = [sys.executable, "-m", "tests.warm", str(folder / "socket"), str(folder)]
    # It ends when its standard input closes, with this process.
    server = subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert server.stdout and server.stdout.readline() == "ready\n"
    return ENVIRONMENT | {"PATH": f"{folder}{os.pathsep}{ENVIRONMENT['PATH']}"}


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, its output as text."""
    return subprocess.run(words, cwd=cwd, env=warm() | environment, capture_output=True, text=True, timeout=540)


WHO = {f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def run_in(cwd: Path, *words: str, **environment: str) -> str:
    """What a command prints that must succeed."""
    result = command(*words, cwd=cwd, **WHO, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def repro(workspace: Path, *targets: str) -> list[str]:
    """`dvc repro` that must succeed; returns the stages that ran."""
    result = command("dvc", "repro", *targets, cwd=workspace)
    assert result.returncode == 0, result.stdout + result.stderr
    return ran(result.stdout)


def ran(output: str) -> list[str]:
    """The stages that a `dvc` which printed this has run."""
    return re.findall(r"Running stage '(\w+)'", output)


def set_params(workspace: Path, **leaves: Any) -> None:
    """Edit leaves of params.yaml, named section__leaf."""
    path = workspace / "params.yaml"
    tree = load_yaml(path.read_text())
    for name, value in leaves.items():
        section, _, leaf = name.partition("__")
        tree[section][leaf] = value
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


class Malicious:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.mkdir, (str(self.trace),)


@contextmanager
def edited(path: Path, content: str | None = None) -> Iterator[Path]:
    """A file with other content for a while; without `content` the test edits it, or removes it."""
    before = path.read_bytes()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    try:
        yield path
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(before)


def wait_for(question: Callable[[], Any], problem: str, process: subprocess.Popen[Any] | None = None) -> Any:
    """The first true answer, within five minutes and while the process runs."""
    deadline = time.monotonic() + 300
    while not (answer := question()):
        assert time.monotonic() < deadline and (process is None or process.poll() is None), problem
        time.sleep(0.01)
    return answer


def parameters(preset: str | None = None, **changes: Any) -> Params:
    """Those of params.yaml with a preset and single leaves, named section__leaf, changed."""
    leaves = read_preset(ROOT / "presets" / preset) if preset else {}
    leaves |= {key.replace("__", "."): value for key, value in changes.items()}
    return validate_params(apply(load_yaml((ROOT / "params.yaml").read_text()), leaves, "test"), "test")


def context(stage: str, params: Params) -> Context:
    """What a stage is given, without DVC: it works in the working directory and keeps nothing in scratch."""
    return Context.of(stage, params, ROOT / "dvc.yaml")


def write_noise(train: int, others: int, size: tuple[int, int] = (28, 28)) -> None:
    """An images.h5 of grey noise with two labels, in the working directory: so many images to train on, and for each other
    split."""
    g = np.random.default_rng(0)
    Path("data").mkdir(exist_ok=True)
    with hdf5.writing(Path("data/images.h5")) as out:
        for split, n in zip(hdf5.SPLITS, (train, others, others), strict=True):
            out.add(f"{split}/images", g.integers(0, 256, (n, 1, *size), dtype=np.uint8))
            out.add(f"{split}/labels", (np.arange(n) % 2).astype(np.uint8))
        checksums = {"train_sha256": "0" * 64, "test_sha256": "1" * 64}
        out.attributes(format=images.FORMAT.name, dataset="noise", classes=2, **checksums)


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
                assert [len(stages) for stages in pool.map(repro, (first, second))] == 2 * [len(STAGES)]
    return first, second


@pytest.fixture(scope="session")
def tiny(twins: tuple[Path, Path]) -> Path:
    """A workspace in which the whole pipeline has run, to read from alone."""
    return twins[1]


@pytest.fixture(scope="session")
def changeable(twins: tuple[Path, Path]) -> Path:
    """Another one, for the tests of test_pipeline.py alone, which run one after the other: each puts back what it changes."""
    return twins[0]


@pytest.fixture(scope="module")
def copy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it for the tests of one file: each puts back what it changes."""
    target = tmp_path_factory.mktemp("module") / "copy"
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("cache", "tmp"))
    return target


@pytest.fixture
def workspace(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy as the working directory, where stages run in this process; without unfinished work."""
    monkeypatch.chdir(copy)
    monkeypatch.setattr(runner, "__file__", str(copy / "pipeline/run.py"))
    monkeypatch.setattr(fingerprint, "START_NS", 2**63)  # the copy is younger than this process
    monkeypatch.setenv("LFM_DEVICE", "cpu")
    shutil.rmtree(copy / ".dvc/tmp", ignore_errors=True)
    return copy


def arguments(stage: str) -> list[str]:
    """What python is started with for a stage: -m, its module, and its name where the module serves several."""
    words: list[str] = STAGES[stage]["cmd"].split()
    return words[words.index("-m") :]


def run_stage(stage: str) -> None:
    """Run a stage in this process."""
    runner.run(import_module(arguments(stage)[1]).main, stage)


@pytest.fixture
def error_of(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Runs a stage that must end with exit code 2, one line, and nothing half-made. Returns the line."""

    def run(stage: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run_stage(stage)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 2 and line.startswith("error: ") and len(line) < 700
        assert not [p for folder in ("data", "models", "reports") for p in Path(folder).rglob("*.part")]
        return line.removeprefix("error: ")

    return run


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


class Digits(NamedTuple):
    """A split of MNIST."""

    images: torch.Tensor  # (N, 1, 28, 28) uint8
    labels: torch.Tensor  # (N,) int64


@pytest.fixture(scope="session")
def digits(mirror: str) -> dict[str, Digits]:
    """MNIST's three splits, those that the bundled weights were made with."""
    p = parameters().data
    full, test, *_ = datasets.DATASETS["mnist"](p, False)
    train, validation = datasets.hold_out(full, test.labels, p.seed)
    for record in (ROOT / "lfm/pretrained").rglob("record.json"):
        assert json.loads(record.read_text())["train_sha256"] == datasets.digest(train), record
    splits = {"train": train, "validation": validation, "test": test}
    return {n: Digits(torch.tensor(s.images), torch.tensor(s.labels).long()) for n, s in splits.items()}


@pytest.fixture(scope="session")
def bundled() -> LatentFlow:
    """The model that comes with the package; tests leave it as it is."""
    return LatentFlow.from_pretrained()

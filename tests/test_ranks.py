"""Several processes for one stage: the result of a single one, whatever becomes of them."""

import csv
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import UserError
from pipeline.machine.ranks import LAUNCHED, Place, Ranks, place
from pipeline.training.together import shared
from tests.conftest import ENVIRONMENT, ROOT, arguments, command, heed_signals, set_params
from tools.workspace import outs

TRAININGS = ["train", "autoencoder", "classifier", "second_classifier", "distill"]
OUT = {"train": "flow", "distill": "flow_map"}  # where it isn't the stage's name


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished pipeline whose trainings are in float32: bf16's rounding would hide what differs."""
    copy = tmp_path_factory.mktemp("ranks") / "copy"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns("cache", "tmp"))
    set_params(copy, **{f"{stage}__precision": "float32" for stage in TRAININGS}, runtime__checkpoint_every=5)
    return copy


def launch(words: list[str], n: int, cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run `python` with these words in n processes, which start at once, as a launcher does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])

    def one(rank: int) -> subprocess.CompletedProcess[str]:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LFM_DEVICE": "cpu"}
        return command("python", *words, cwd=cwd, **(place if n > 1 else {}), **here)

    with ThreadPoolExecutor(n) as pool:
        results = [*pool.map(one, range(n))]
    for result in results:
        assert result.returncode == 0, result.stderr
    return results


def launch_stage(stage: str, n: int, cwd: Path) -> str:
    """Run a stage in n processes. Returns what it writes to stderr."""
    first, *others = launch(arguments(stage), n, cwd)
    assert not any(other.stderr for other in others), "those that follow are silent"
    return first.stderr


class Training:
    """What a training has made: all weights, and the figures of its curves."""

    def __init__(self, stage: str, cwd: Path) -> None:
        out = cwd / "models" / OUT.get(stage, stage)
        weights = [w for file in sorted(out.rglob("*.safetensors")) for w in load_file(file).values()]
        self.weights = torch.cat([w.flatten().double() for w in weights])
        rows = [row for file in sorted(out.glob("*.csv")) for row in [*csv.reader(file.open(encoding="utf-8"))][1:]]
        self.curves = torch.tensor([float(value) for row in rows for value in row[1:]], dtype=torch.float64)

    def is_near(self, other: "Training") -> bool:
        """Whether no figure differs by more than 1e-3 of it, and the weights together by no more than 1e-2.

        Gradients differ by the rounding of a sum, 1e-7 to 1e-6. Adam divides each by its own size, so a weight whose gradient is
        nothing but rounding may move by the learning rate either way in each of the 20 steps; the loss hardly depends on it.
        """
        figures = ((self.curves - other.curves).abs() / other.curves.abs()).max()
        return bool(figures < 1e-3 and (self.weights - other.weights).norm() < 1e-2 * other.weights.norm())


def test_gradients_and_statistics_of_a_batch_are_those_of_one_process() -> None:
    """Of 16 rows each of three processes has 5 or 6. Sums of some thousand terms in float32, in another order: 1e-5 at most."""
    far = [float(result.stdout) for result in launch(["-m", "tests.gradients"], 3, ROOT)]
    assert max(far) < 1e-5 and len(set(far)) == 1


@pytest.mark.parametrize(
    ("stage", "n"), [("autoencoder", 3), ("classifier", 2), ("second_classifier", 3), ("distill", 2)]
)
def test_a_training_in_several_processes_is_that_of_one(folder: Path, stage: str, n: int) -> None:
    launch_stage(stage, 1, folder)
    expected = Training(stage, folder)
    shutil.rmtree(folder / ".dvc/tmp")
    launch_stage(stage, n, folder)
    assert Training(stage, folder).is_near(expected)


def test_a_training_goes_on_with_another_number_of_processes(folder: Path) -> None:
    launch_stage("train", 1, folder)
    expected = Training("train", folder)
    shutil.rmtree(folder / ".dvc/tmp")
    for n, line in ((2, ""), (3, "train: continues at step 15\n"), (1, "train: continues at step 15\n")):
        assert line in launch_stage("train", n, folder)
        assert Training("train", folder).is_near(expected)
        (last,) = (folder / ".dvc/tmp").rglob("step-0000000020.*")
        last.unlink()  # as if it had been killed


def test_parts_made_by_several_processes_have_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns("cache", "tmp"))
    before = outs(copy)
    for stage, n, out in (("sample", 3, "data/samples.h5"), ("likelihood", 2, "reports/likelihood.json")):
        (copy / out).unlink()
        printed = launch_stage(stage, n, copy)
        assert f"{stage}, 1 of {n}" in printed
    assert outs(copy) == before
    found = json.loads((copy / out).read_text(encoding="utf-8"))
    assert f"likelihood: {found['bits_per_dim']:.4f} ± {2 * found['standard_error']:.4f} bits" in printed


# --- those that LFM_PROCESSES starts --------------------------------------------------------------------------------------


@contextmanager
def running(folder: Path, n: int) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """An endless training in n processes, after its first step: rank 0, and the others, which it has started."""
    set_params(folder, train__steps=10**6)
    live = folder / "live/train.csv"
    live.unlink(missing_ok=True)
    words, environment = (
        [sys.executable, *arguments("train")],
        ENVIRONMENT | {"LFM_PROCESSES": str(n), "LFM_DEVICE": "cpu"},
    )
    with subprocess.Popen(
        words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    ) as first:
        try:
            deadline = time.monotonic() + 300
            while not (live.exists() and live.read_text().count("\n") > 1):
                assert first.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            others = [p for p in psutil.Process(first.pid).children() if "RANK" in p.environ()]
            yield first, sorted(others, key=lambda process: int(process.environ()["RANK"]))
        finally:
            first.kill()


def test_a_process_that_dies_ends_the_stage_and_is_named(folder: Path) -> None:
    with running(folder, 3) as (first, (one, two)):
        two.kill()
        _, errors = first.communicate(timeout=30)
        assert first.returncode == 2
        words = "error: process 2 of 3 was ended by SIGKILL; run `dvc repro` again: it goes on where it stopped"
        assert errors.splitlines()[-1] == words and "Traceback" not in errors
        assert psutil.wait_procs([one], timeout=10)[1] == []


def test_all_end_with_the_first_one(folder: Path) -> None:
    with running(folder, 2) as (first, (other,)):
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate(timeout=30)
        assert first.returncode == 128 + signal.SIGTERM and "Traceback" not in errors
        assert psutil.wait_procs([other], timeout=10)[1] == []


# --- mistakes -------------------------------------------------------------------------------------------------------------


def test_a_batch_has_a_row_for_each_process() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"^LFM_PROCESSES is 3 and train\.batch_size 2.*raise train\.batch_size$"):
        shared(model, model, Ranks(Place(0, 3)), "train", 2)


BAD: dict[str, tuple[dict[str, str], str]] = {
    "no number": ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK is 'first', but WORLD_SIZE is '2'"),
    "too large": ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is '2', but WORLD_SIZE is '2'"),
    "alone": ({"RANK": "0"}, "RANK is '0', but WORLD_SIZE is not set"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_launchers_variables_make_sense(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    variables, words = BAD[case]
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{words}.*unset RANK"):
        place()

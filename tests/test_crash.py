"""It can be ended anywhere: what goes on goes on with the same bits, and nothing half-made or moved is recorded."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lfm.nets.transformer import Transformer
from pipeline.artifacts.files import CHECKS, publishing, replacing
from pipeline.artifacts.latents import Latents
from pipeline.errors import UserError
from pipeline.machine import fingerprint, scratch
from pipeline.machine.process import alone, end_with_parent, ending_by_signal
from pipeline.machine.scratch import Scratch
from pipeline.params import Loader, Params, validate_params
from pipeline.training.checkpoint import Checkpoints, State
from stages import train
from stages.train import Result
from tests.conftest import ENVIRONMENT, ROOT, command, heed_signals
from tools.mend import mend
from tools.workspace import apply, outs, read_preset

BASE = yaml.load((ROOT / "params.yaml").read_text(), Loader)


def tiny_params(**changes: Any) -> Params:
    """Those of presets/tiny, with some leaves of `train` changed."""
    leaves = read_preset(ROOT / "presets/tiny") | {f"train.{k}": v for k, v in changes.items()}
    return validate_params(apply(BASE, leaves, "test"), "test")


# --- checkpoints -------------------------------------------------------------------------------------------------------


def latents(n: int, seed: int) -> Latents:
    draws = np.random.default_rng(seed)
    mean = torch.from_numpy(draws.standard_normal((n, 4, 4, 4), dtype=np.float32))
    return Latents(mean, torch.full_like(mean, 0.1), torch.from_numpy(draws.integers(0, 10, n)))


class Stop(Exception):
    pass


class Stopping(Checkpoints):
    """Raises `Stop` when so many steps are done, in the middle of whatever comes next."""

    stop = 0

    def keep(self, state: State, done: int, steps: int) -> None:
        super().keep(state, done, steps)
        if done == self.stop:
            raise Stop


def trained(p: Params, saved: Checkpoints) -> Result:
    torch.manual_seed(0)
    model = Transformer(4, 4, **p.model.model_dump(exclude={"labels"}), classes=10)
    return train.train(model, p.flow, p.train, latents(64, 0), latents(32, 1), False, saved)


def contents(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of every checkpoint: weights, their average, what the optimiser holds, curves and snapshots."""
    there = Scratch(folder)
    return {path.name.split(".")[0]: there.read(path) or {} for path in there.find("step-*")}


@pytest.mark.parametrize("stop", [8, 11, 15])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: int
) -> None:
    p, folders = (
        tiny_params(steps=16, validate_every=3, snapshots=[0, 0.5, 1]),
        (tmp_path / "whole", tmp_path / "again"),
    )
    for folder in folders:
        folder.mkdir()
    whole = trained(p, Checkpoints(Scratch(folders[0], "train"), 4))

    stopped = Stopping(Scratch(folders[1], "train"), 4)
    stopped.stop = stop
    with pytest.raises(Stop):
        trained(p, stopped)
    again = trained(p, Checkpoints(Scratch(folders[1], "train"), 4))

    assert f"train: goes on at step {stop // 4 * 4}\n" in capsys.readouterr().err
    assert whole[1:3] == again[1:3]  # losses, validation losses
    assert [step for step, _ in whole.snapshots] == [step for step, _ in again.snapshots] == [0, 8, 16]
    first, second = (contents(folder) for folder in folders)
    assert list(first) == list(second) == ["step-0000000012", "step-0000000016"]
    for name, tensors in first.items():
        assert set(tensors) == set(second[name]) and len(tensors) > 100
        for key, value in tensors.items():
            assert torch.equal(value, second[name][key]), key


def test_a_finished_training_is_not_made_again(tmp_path: Path) -> None:
    p = tiny_params(steps=6)
    whole = trained(p, Checkpoints(Scratch(tmp_path, "train"), 4))
    stopping = Stopping(Scratch(tmp_path, "train"), 1)
    again = trained(p, stopping)
    assert stopping.newest == 6
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "a flipped bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(pickle.dumps(Malicious(path.parent / "owned")))


class Malicious:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["truncated", "a flipped bit", "empty", "a pickle"])
def test_a_damaged_checkpoint_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    p = tiny_params(steps=12)
    whole = trained(p, Checkpoints(Scratch(tmp_path, "train"), 4))
    newest = Scratch(tmp_path).find("step-*")[-1]
    damage(newest, how)
    again = trained(p, Checkpoints(Scratch(tmp_path, "train"), 4))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"train: {newest} is damaged (its sha256 is another one than its name says) and left out",
        "train: goes on at step 8",
    ]
    assert whole[1:3] == again[1:3] and not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["generated-0", "generated-100"])
def test_parts_are_made_once_and_damaged_ones_again(tmp_path: Path, name: str) -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"images": np.arange(6, dtype=np.uint8).reshape(2, 3).T, "passes": np.array(7)}

    for _ in range(2):
        found = Scratch(tmp_path).part(name, make)
        assert found["images"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["images"].flags["C_CONTIGUOUS"]
        assert int(found["passes"]) == 7
    assert len(made) == 1
    damage(Scratch(tmp_path).find(name)[0], "truncated")
    Scratch(tmp_path).part(name, make)
    Scratch(tmp_path).part(name, make)
    assert len(made) == 2


def test_a_loss_that_is_not_finite_or_diverges_stops_with_its_step(tmp_path: Path) -> None:
    saved = Checkpoints(Scratch(tmp_path, "train"), 4)
    saved.newest = 8
    assert saved.sound(10, 150.0, []) == 150.0 and saved.sound(10, 9.0, [(5, 1.0)]) == 9.0
    for loss, told in {float("nan"): "nan", float("inf"): "inf", 10.5: "10.5"}.items():
        with pytest.raises(UserError) as error:
            saved.sound(10, loss, [(5, 1.0)])
        assert str(error.value) == (
            f"train: the loss is {told} at step 10, and began with 1 (the checkpoint of step 8 stays); "
            "lower train.learning_rate"
        )


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    state = State({"model": model}, torch.optim.AdamW(model.parameters()), {})
    saved = Checkpoints(Scratch(tmp_path, "classifier"), 2)
    saved.keep(state, 2, 8)
    torch.nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(UserError) as error:
        saved.keep(state, 4, 8)
    assert str(error.value) == (
        "classifier: weights are not finite after step 4 (the checkpoint of step 2 stays); lower classifier.learning_rate"
    )
    assert [path.name.split(".")[0] for path in Scratch(tmp_path).find("*")] == ["step-0000000002"]


# --- fingerprints, locks, signals --------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one stage's inputs, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: run, deps: [code.py, folder]}}")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_text("a")
    return tmp_path


def started() -> fingerprint.Fingerprint:
    return fingerprint.Fingerprint("train", ("train",), validate_params(BASE, "params.yaml"))


def test_a_key_follows_from_parameters_inputs_and_threads_alone(project: Path) -> None:
    keys = [started().key()]
    (project / "folder/a").touch()
    assert started().key() == keys[0]
    (project / "folder/b").write_text("")
    keys.append(started().key())
    (project / "code.py").write_text("2")
    keys.append(started().key())
    keys.append(fingerprint.Fingerprint("train", ("train",), tiny_params()).key())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    keys.append(started().key())
    torch.set_num_threads(threads)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: Path("code.py").write_text("2"), "code.py: changed while this stage ran; run `dvc repro` again"),
        (lambda: Path("folder/b").write_text("2"), "folder: changed while this stage ran; run `dvc repro` again"),
        (lambda: shutil.rmtree("folder"), "folder: changed while this stage ran; run `dvc repro` again"),
        (
            lambda: Path("params.yaml").write_text(yaml.safe_dump(BASE | {"train": {**BASE["train"], "seed": 1}})),
            "params.yaml: train was edited while this stage ran; run `dvc repro` again",
        ),
    ],
    ids=["code", "a new input", "no input", "parameters"],
)
def test_nothing_is_published_when_something_moved(project: Path, edit: Callable[[], object], message: str) -> None:
    with fingerprint.guarding(started()):
        with publishing(Path("out")) as part:
            (part / "whole").touch()
        edit()
        for attempt in (publishing(Path("out")), replacing(Path("out.json"))):
            with pytest.raises(UserError) as error, attempt as part:
                pass
            assert str(error.value) == message
        assert not Path("out.json").exists() and Path("out/whole").exists() and not list(project.glob("*.part"))
    assert not CHECKS


def test_what_is_touched_and_not_changed_has_not_moved(project: Path) -> None:
    start = started()
    for path in ("code.py", "folder/a", "params.yaml"):
        (project / path).touch()
    (project / "params.yaml").write_text(
        (project / "params.yaml").read_text().replace("progress: true", "progress: false")
    )
    start.check()


def test_the_newest_few_keys_are_kept_and_one_at_work_is_busy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.machine.process.PATIENCE_S", 0.2)
    seen = []
    for i in range(5):
        (project / "code.py").write_text(str(i))
        with fingerprint.guarding(started()), scratch.opened() as saved:
            assert saved.folder is not None
            saved.write("x", {"x": torch.zeros(1)})
            seen.append(saved.folder)
            with pytest.raises(UserError) as error, scratch.opened():
                pass
            assert str(error.value) == (
                f"{saved.folder}/lock: busy, process {os.getpid()} works on the same; wait for it or stop it, then run again"
            )
    # When the last one began, four were finished: the newest three of these stayed.
    assert [folder.exists() for folder in seen] == [False, True, True, True, True]


def test_unfinished_work_is_kept_however_many_others_there_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for i in range(5):
        (project / "code.py").write_text(str(i))
        with suppress(KeyboardInterrupt), fingerprint.guarding(started()), scratch.opened() as saved:
            assert saved.folder is not None
            seen.append(saved.folder)
            raise KeyboardInterrupt
    assert all(folder.exists() for folder in seen)
    monkeypatch.setattr("pipeline.machine.scratch.UNFINISHED_DAYS", -1)  # all of it was left long ago
    (project / "code.py").write_text("5")
    with fingerprint.guarding(started()), scratch.opened():
        assert not any(folder.exists() for folder in seen)


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    code = "import pathlib, time, sys; from pipeline.machine.process import alone\n"
    code += "with alone(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    lock = tmp_path / "folder/lock"
    holder = subprocess.Popen([sys.executable, "-c", code, lock], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.wait()
    with alone(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_never_ends_in_success(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    with pytest.raises(SystemExit) as error, ending_by_signal():
        try:
            with replacing(tmp_path / "out") as part:
                part.touch()
                os.kill(os.getpid(), number)
        except SystemExit:
            pass  # as a careless library would
    signal.signal(number, before)
    assert error.value.code == 128 + number
    assert not list(tmp_path.iterdir())


def test_a_stage_whose_dvc_died_while_it_imported_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    with pytest.raises(UserError) as error:
        end_with_parent(os.getppid() + 1)  # the present parent is another one: whoever adopts orphans
    assert str(error.value) == "the `dvc` that started train is gone; run `dvc repro` again"


WHOLE = "schema: '2.0'\nstages:\n  fetch:\n    cmd: x\n"


@pytest.mark.parametrize(
    ("name", "content", "removed"),
    [
        ("dvc.lock", WHOLE, False),
        ("dvc.lock", "", True),
        ("dvc.lock", WHOLE[:20], True),
        ("dvc.lock", WHOLE[:-4], True),
        ("dvc.lock", f"<<<<<<< ours\n{WHOLE}=======\n", False),  # git's to end
        (".dvc/tmp/rwlock", "{}", False),
        (".dvc/tmp/rwlock", '{"write": {"da', True),
        ("reports/.wRu5-zJqA2AozAAmrcEVoQ.tmp", "half", True),
        ("reports/metrics.json", "{}", False),
        (".dvc/cache/runs/ab/abc", None, True),
        (".dvc/cache/runs/ab/abc/def", "cmd: x", False),
    ],
)
def test_what_dvc_was_killed_in_the_middle_of_is_removed(
    tmp_path: Path, name: str, content: str | None, removed: bool
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if content is None else path.write_text(content)
    assert mend(tmp_path) == ([path] if removed else [])
    assert path.exists() != removed


# --- whole stages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A workspace of its own in which everything has run."""
    shutil.copytree(tiny, tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    shutil.rmtree(tmp_path / "copy/.dvc/tmp", ignore_errors=True)
    return tmp_path / "copy"


def change(workspace: Path, **leaves: Any) -> None:
    """Edit leaves of params.yaml, named section__leaf."""
    path = workspace / "params.yaml"
    changes = {key.replace("__", "."): value for key, value in leaves.items()}
    path.write_text(yaml.safe_dump(apply(yaml.load(path.read_text(), Loader), changes, "test"), sort_keys=False))


@contextmanager
def launched(workspace: Path, stage: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", f"stages.{stage}"]
    process = subprocess.Popen(
        words, cwd=workspace, env=ENVIRONMENT | environment, stderr=subprocess.PIPE, preexec_fn=heed_signals
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(there: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not there():
        assert process.poll() is None and time.monotonic() < deadline, "the stage ended before it was disturbed"
        time.sleep(0.005)


def kept(workspace: Path, pattern: str) -> list[Path]:
    return sorted((workspace / ".dvc/tmp/lfm").glob(f"*/*/{pattern}.safetensors"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_ended_training_goes_on_to_the_same_bytes(copy: Path, number: signal.Signals) -> None:
    stage = {signal.SIGKILL: "train", signal.SIGTERM: "classifier", signal.SIGINT: "autoencoder"}[number]
    change(copy, runtime__checkpoint_every=4, runtime__progress=False)
    before = outs(copy)
    with launched(copy, stage) as process:
        wait_for(lambda: kept(copy, "step-*"), process)
        process.send_signal(number)
        code = process.wait()
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    again = command("python", "-m", f"stages.{stage}", cwd=copy)
    assert again.returncode == 0 and f"{stage}: goes on at step " in again.stderr
    assert outs(copy) == before and not list(copy.rglob("*.part"))


def test_a_part_that_is_there_is_not_made_again(copy: Path) -> None:
    before = outs(copy)
    for stage in ("encode", "sample", "likelihood"):
        result = command("python", "-m", f"stages.{stage}", cwd=copy)
        assert result.returncode == 0, result.stderr
        assert kept(copy, "*")
        damage(kept(copy, "*")[0], "a flipped bit")
        again = command("python", "-m", f"stages.{stage}", cwd=copy)
        assert again.returncode == 0 and "is damaged (its sha256 is another one than its name says)" in again.stderr
        shutil.rmtree(copy / ".dvc/tmp/lfm")
    assert outs(copy) == before


def test_a_second_process_is_told_that_the_stage_is_busy(copy: Path) -> None:
    lock = copy / ".dvc/tmp/lfm/fetch/lock"
    with alone(lock):
        result = command("python", "-m", "stages.fetch", cwd=copy)
    assert result.returncode == 2
    assert result.stderr == (
        f"error: .dvc/tmp/lfm/fetch/lock: busy, process {os.getpid()} works on the same; wait for it or stop it, "
        "then run again\n"
    )


def test_a_stage_dies_with_its_dvc(copy: Path) -> None:
    change(copy, train__steps=100_000, train__snapshots=[0, 1], runtime__checkpoint_every=10)
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'stages.train'])"
    environment = ENVIRONMENT | {"DVC_STAGE": "train", "DVC_ROOT": str(copy)}
    dvc = subprocess.Popen([sys.executable, "-c", code], cwd=copy, env=environment, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: kept(copy, "step-*"), dvc)
    finally:
        dvc.kill()
        dvc.wait()
    with alone(copy / ".dvc/tmp/lfm/train/lock"):  # within seconds, or it is busy
        pass


def test_no_artifact_is_read_as_a_pickle(copy: Path) -> None:
    readers = {"data/images.h5": "encode", "data/latents.h5": "train", "data/samples.h5": "evaluate",
               "models/flow/progress.h5": "sample", "models/flow/flow.json": "sample",
               "models/flow/model.safetensors": "likelihood", "models/classifier/model.safetensors": "evaluate",
               "models/autoencoder/diffusion_pytorch_model.safetensors": "encode"}  # fmt: skip
    payload = pickle.dumps(Malicious(copy / "owned"))
    for name, stage in readers.items():
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(payload)
        result = command("python", "-m", f"stages.{stage}", cwd=copy)
        (copy / name).write_bytes(before)
        assert result.returncode == 2 and "Traceback" not in result.stderr, (name, result.stderr)
        assert not (copy / "owned").exists()

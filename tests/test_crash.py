"""A run may end anywhere: the next one continues to the same bits, and nothing half-made or out of date is recorded."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml

from lfm.nets.transformer import Transformer
from pipeline.artifacts.latents import Latents
from pipeline.entry import read_entry
from pipeline.errors import UserError
from pipeline.machine import fingerprint, scratch
from pipeline.machine.fingerprint import Fingerprint
from pipeline.machine.process import alone, end_with_parent, ending_by_signal
from pipeline.machine.publish import replacing
from pipeline.machine.scratch import Scratch
from pipeline.params import Params
from pipeline.run import Context
from pipeline.training.checkpoint import Checkpoints, State
from stages import train
from tests.conftest import (
    ENVIRONMENT,
    ROOT,
    Malicious,
    arguments,
    command,
    context,
    edited,
    heed_signals,
    parameters,
    run_stage,
    set_params,
    wait_for,
)
from tools.mend import at_work, mend
from tools.workspace import outs

# --- checkpoints -------------------------------------------------------------------------------------------------------


def latents(n: int, seed: int) -> Latents:
    draws = np.random.default_rng(seed)
    mean = torch.from_numpy(draws.standard_normal((n, 4, 4, 4), dtype=np.float32))
    return Latents(mean, torch.full_like(mean, 0.1), torch.from_numpy(draws.integers(0, 10, n)))


def tiny_params(steps: int) -> Params:
    return parameters("tiny", train__steps=steps, train__validate_every=3, runtime__checkpoint_every=4,
                      runtime__progress=False)  # fmt: skip


def new(p: Params) -> Transformer:
    torch.manual_seed(0)
    return Transformer(4, 4, **p.model.model_dump(exclude={"labels"}), classes=10)


def trained(p: Params, folder: Path) -> train.Result:
    """A training whose checkpoints are in a folder."""
    folder.mkdir(exist_ok=True)
    given = context("train", p)
    given.scratch = Scratch(folder, "train")
    return train.train(given, new(p), latents(64, 0), latents(32, 1))


def steps_in(folder: Path) -> list[int]:
    """The steps after which its checkpoints were written."""
    return [int(path.name.split(".")[0].removeprefix("step-")) for path in Scratch(folder).find("step-*")]


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [8, 11, 15])
def test_a_stopped_training_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: int
) -> None:
    p, folders = tiny_params(16), (tmp_path / "whole", tmp_path / "again")
    whole = trained(p, folders[0])

    def stopping(self: Checkpoints, state: State, done: int, steps: int) -> None:
        keep(self, state, done, steps)
        if done == stop:
            raise Stop

    keep = Checkpoints.keep
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Checkpoints, "keep", stopping)
        trained(p, folders[1])
    again = trained(p, folders[1])

    assert f"train: continues at step {stop // 4 * 4}\n" in capsys.readouterr().err
    assert (whole.losses, whole.validation) == (again.losses, again.validation)
    assert [step for step, _ in whole.snapshots] == [step for step, _ in again.snapshots] == [0, 8, 16]
    assert steps_in(folders[0]) == steps_in(folders[1]) == [12, 16]
    # Every tensor of both checkpoints: weights, their average, the optimiser's moments, curves and snapshots.
    for paths in zip(*(Scratch(folder).find("step-*") for folder in folders), strict=True):
        first, second = (Scratch(path.parent).read(path) or {} for path in paths)
        assert set(first) == set(second) and len(first) > 100
        assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []


def test_the_weak_training_goes_on_from_its_own_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    p = tiny_params(6)
    trained(p, tmp_path)

    def weak(folder: Path) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        given = context("train", p)
        given.scratch = Scratch(folder, "train")
        return train.train_weak(given, new(p), latents(64, 0), 9).state_dict()

    whole = weak(tmp_path / "alone")
    update = train.update

    def stopping(*of: Any) -> torch.Tensor:
        if of[2] == 6:  # after the checkpoint of step 4
            raise Stop
        return update(*of)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(train, "update", stopping)
        weak(tmp_path)
    capsys.readouterr()
    again = weak(tmp_path)
    assert capsys.readouterr().err == "train: continues at weak-step 4\n"
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert steps_in(tmp_path) == [4, 6], "those of the long training stay"


def test_a_finished_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tiny_params(6), tmp_path)
    monkeypatch.setattr(train, "batch", None)
    again = trained(tiny_params(6), tmp_path).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in whole.model.state_dict().items())


DAMAGES: dict[str, Callable[[bytes, Path], bytes]] = {
    "truncated": lambda content, _: content[: len(content) // 2],
    "a flipped bit": lambda content, _: content[:-1] + bytes([content[-1] ^ 1]),
    "empty": lambda content, _: b"",
    "a pickle": lambda content, trace: pickle.dumps(Malicious(trace)),
}


def damage(path: Path, how: str) -> None:
    path.write_bytes(DAMAGES[how](path.read_bytes(), path.parent / "owned"))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    p = tiny_params(12)
    whole = trained(p, tmp_path)
    newest = Scratch(tmp_path).find("step-*")[-1]
    damage(newest, how)
    again = trained(p, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"train: {newest} is damaged") and lines[1:] == ["train: continues at step 8"]
    assert whole.losses == again.losses and not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["generated-0", "generated-100"])
def test_a_part_is_made_once_and_a_damaged_one_again(tmp_path: Path, name: str) -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"images": np.arange(6, dtype=np.uint8).reshape(2, 3).T, "passes": np.array(7)}

    for _ in range(2):
        part = Scratch(tmp_path).part(name, make)
        assert part["images"].tolist() == [[0, 3], [1, 4], [2, 5]] and part["images"].flags["C_CONTIGUOUS"]
        assert int(part["passes"]) == 7
    assert len(made) == 1
    damage(Scratch(tmp_path).find(name)[0], "truncated")
    for _ in range(2):
        Scratch(tmp_path).part(name, make)
    assert len(made) == 2


@pytest.mark.parametrize(("loss", "text"), [(float("nan"), "nan"), (float("inf"), "inf"), (10.5, "10.5")])
def test_a_loss_that_is_not_finite_or_diverges_stops_the_training(tmp_path: Path, loss: float, text: str) -> None:
    checkpoints = Checkpoints(Scratch(tmp_path, "train"), 4, "train")
    checkpoints.newest = 8
    assert checkpoints.sound(10, 150.0, []) == 150.0 and checkpoints.sound(10, 9.0, [(5, 1.0)]) == 9.0
    with pytest.raises(UserError, match=rf"^train: the loss is {text} at step 10\b.*step 8\b.*train.learning_rate$"):
        checkpoints.sound(10, loss, [(5, 1.0)])


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    state = State({"model": model}, torch.optim.AdamW(model.parameters()), {})
    checkpoints = Checkpoints(Scratch(tmp_path, "second"), 2, "classifier")
    checkpoints.keep(state, 2, 8)
    torch.nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(UserError, match=r"^second: weights .* step 4 .*step 2 .* classifier\.learning_rate$"):
        checkpoints.keep(state, 4, 8)
    assert steps_in(tmp_path) == [2]


# --- fingerprints, locks, signals --------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one stage and its inputs, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fingerprint, "START_NS", 2**63)
    stage = {"cmd": "run", "params": ["train"], "deps": ["code.py", "folder"], "outs": ["out", "file.json"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}), encoding="utf-8")
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    Path("code.py").write_text("1", encoding="utf-8")
    Path("folder").mkdir()
    Path("folder/a").write_text("a", encoding="utf-8")
    return tmp_path


def started() -> Fingerprint:
    entry = read_entry("train")
    return Fingerprint(entry, entry.params())


def test_a_key_follows_from_parameters_inputs_code_and_machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [started().key()]
    Path("folder/a").touch()
    set_params(project, runtime__progress=False, sample__seed=1)
    assert started().key() == keys[0]
    for path in ("folder/b", "code.py"):
        Path(path).write_text("2", encoding="utf-8")
        keys.append(started().key())
    set_params(project, train__seed=1)
    keys.append(started().key())
    here = fingerprint.machine()
    for other in ({"device": "NVIDIA H100"}, {"processor": "arm64 DEFAULT"}, {"threads": 64}):
        monkeypatch.setattr(fingerprint, "machine", lambda other=other: here | other)
        keys.append(started().key())
    monkeypatch.setattr(fingerprint.importlib.metadata, "version", lambda name: "0.0")
    keys.append(started().key())
    assert len(set(keys)) == len(keys) == 8


def test_another_number_of_threads_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = fingerprint.machine()
    assert here["threads"] == torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: int(here["threads"]) + 1)
    assert fingerprint.machine() != here


EDITS: dict[str, tuple[Callable[[], object], str]] = {
    "code": (lambda: Path("code.py").write_text("2", encoding="utf-8"), "code.py: "),
    "a new input": (lambda: Path("folder/b").write_text("2", encoding="utf-8"), "folder: "),
    "no input": (lambda: shutil.rmtree("folder"), "folder: "),
    "parameters": (lambda: set_params(Path(), train__seed=1), "params.yaml: train "),
}


@pytest.mark.parametrize("edit", EDITS)
def test_nothing_is_published_when_something_was_edited(project: Path, edit: str) -> None:
    entry = read_entry("train")
    given = Context(entry, entry.params(), started())
    with given.publish("out") as part:
        (part / "whole").touch()
    change, key = EDITS[edit]
    change()
    for name in ("out", "file"):
        with pytest.raises(UserError, match=f"^{key}.* while this stage ran"), given.publish(name):
            pass
    assert not Path("file.json").exists() and Path("out/whole").exists() and not list(project.glob("*.part"))


def test_a_touched_file_with_the_same_content_was_not_edited(project: Path) -> None:
    start = started()
    for path in ("code.py", "folder/a", "params.yaml"):
        Path(path).touch()
    set_params(project, runtime__progress=False)
    start.check()


def moved_here(folder: Path) -> None:
    """A file of last year takes the place of the code."""
    (folder / "old.py").write_text("2")
    os.utime(folder / "old.py", (1e9, 1e9))
    (folder / "old.py").replace("code.py")


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "edited": (lambda folder: Path("code.py").write_text("2", encoding="utf-8"), True),
    "its time set back": (lambda folder: os.utime("code.py", (1e9, 1e9)), True),
    "an old file moved there": (moved_here, True),
    "nothing": (lambda folder: None, False),
    "a time to come": (lambda folder: None, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_code_that_was_edited_while_python_imported_it_is_refused(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change == "a time to come":  # unpacked on a machine whose clock is ahead
        os.utime("code.py", (4e9, 4e9))
    time.sleep(0.02)  # the kernel's clock for files ticks every 10 ms at most
    monkeypatch.setattr(fingerprint, "START_NS", time.time_ns())
    time.sleep(0.02)
    edit, refused = CHANGES[change]
    edit(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(UserError, match=r"^code\.py: ") if refused else nullcontext():
        started()


def test_bytecode_that_python_takes_for_newer_code_is_removed(project: Path) -> None:
    """Python compares whole seconds and sizes: an edit in the second of an import, of the same length, goes unnoticed."""

    def read() -> str:
        words = sys.executable, "-c", "import code_; print(code_.x)"
        return command(*words, cwd=project, PYTHONDONTWRITEBYTECODE="").stdout

    source, second = Path("code_.py"), 1_700_000_000 * 10**9
    source.write_text("x = 1", encoding="utf-8")
    os.utime(source, ns=(second, second))
    assert read() == "1\n"
    bytecode = next(Path("__pycache__").iterdir())
    os.utime(bytecode, ns=(second + 10**8, second + 10**8))
    source.write_text("x = 2", encoding="utf-8")
    os.utime(source, ns=(second + 2 * 10**8, second + 2 * 10**8))
    assert read() == "1\n"  # Python's error
    Path("dvc.yaml").write_text(
        Path("dvc.yaml").read_text(encoding="utf-8").replace("code.py", "code_.py"), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"^code_\.py: changed within a second"):
        started()
    assert read() == "2\n"
    started()


def test_under_dvc_an_input_must_be_what_another_stage_made(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))
    stages["stages"]["train"]["deps"] += ["made"]
    stages["stages"]["before"] = {
        "cmd": "mkdir folder && echo é > folder/é && echo x | tee made > folder/a",
        "outs": ["made", "folder"],
    }
    Path("dvc.yaml").write_text(yaml.safe_dump(stages), encoding="utf-8")
    for words in (["init", "--no-scm", "-q"], ["repro", "-q", "before"]):
        assert command("dvc", *words, cwd=project).returncode == 0
    monkeypatch.setenv("DVC_STAGE", "train")
    started()
    for corrupt in ("made", "folder/é"):
        with (
            edited(Path(corrupt), "y"),
            pytest.raises(UserError, match=f"^{corrupt.split('/')[0]}: corrupt.*make mend"),
        ):
            started()
    started()
    monkeypatch.delenv("DVC_STAGE")  # a stage by hand works on what is there
    Path("made").write_text("y", encoding="utf-8")
    started()


def test_the_newest_few_finished_keys_stay_and_one_at_work_is_busy(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.machine.process.PATIENCE_S", 0.2)
    folders = []
    for key in "abcde":
        with scratch.opened("train", key) as saved:
            assert saved.folder is not None
            saved.write("x", {"x": torch.zeros(1)})
            folders.append(saved.folder)
            busy = f"^{saved.folder}/lock: .* {os.getpid()} "
            with pytest.raises(UserError, match=busy), scratch.opened("train", key):
                pass
    # When the last one began, four were finished: the newest three of these stayed.
    assert [folder.exists() for folder in folders] == [False, True, True, True, True]


def test_unfinished_work_stays_however_many_others_there_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for key in "abcde":
        with suppress(KeyboardInterrupt), scratch.opened("train", key) as saved:
            assert saved.folder is not None
            folders.append(saved.folder)
            raise KeyboardInterrupt
    assert all(folder.exists() for folder in folders)
    monkeypatch.setattr(scratch, "UNFINISHED_DAYS", -1)  # all of it was left long ago
    with scratch.opened("train", "f"):
        assert not any(folder.exists() for folder in folders)


def test_a_killed_process_loses_its_lock(tmp_path: Path) -> None:
    code = "import pathlib, time, sys; from pipeline.machine.process import alone\n"
    code += "with alone(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    lock = tmp_path / "folder/lock"
    process = subprocess.Popen([sys.executable, "-c", code, lock], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"locked\n"
    process.kill()
    process.wait()
    with alone(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_never_ends_in_success(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    with pytest.raises(SystemExit) as error, ending_by_signal():
        try:
            with replacing(tmp_path / "out") as part:
                (part / "half").touch()
                os.kill(os.getpid(), number)
        except SystemExit:
            pass  # as a careless library would
    signal.signal(number, before)
    assert error.value.code == 128 + number
    assert not list(tmp_path.iterdir())


def test_a_stage_whose_dvc_died_while_it_imported_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    with pytest.raises(UserError, match="train is gone"):
        end_with_parent(os.getppid() + 1)  # the present parent is another one: whoever adopts orphans


WHOLE = "schema: '2.0'\nstages:\n  fetch:\n    cmd: x\n"
RECORDS: list[tuple[str, str | None, bool]] = [
    ("dvc.lock", WHOLE, False),
    ("dvc.lock", "", True),
    ("dvc.lock", WHOLE[:20], True),
    ("dvc.lock", WHOLE[:-4], True),
    ("dvc.lock", f"<<<<<<< ours\n{WHOLE}=======\n", False),  # git's to end
    (".dvc/tmp/rwlock", "{}", False),
    (".dvc/tmp/rwlock", '{"read": {"data": [{"pid": 1, "cmd": "dvc repro"}]}}', True),  # init has that PID now
    (".dvc/tmp/rwlock", '{"write": {"da', True),
    ("reports/.wRu5-zJqA2AozAAmrcEVoQ.tmp", "half", True),
    ("reports/metrics.json", "{}", False),
    (".dvc/cache/runs/ab/abc", None, True),
    (".dvc/cache/runs/ab/abc/def", "cmd: x", False),
    (".dvc/cache/files/md5/9d/d4e461268c8034f5c8564e155c67a6", "x", False),
    (".dvc/cache/files/md5/9d/d4e461268c8034f5c8564e155c67a6", "y", True),
    (".dvc/cache/files/md5/d7/51713988987e9331980363e24189ce.dir", "[]", False),
    (".dvc/cache/files/md5/d7/51713988987e9331980363e24189ce.dir", "[", True),
    (".dvc/cache/files/md5/9d/.wRu5-zJqA2AozAAmrcEVoQ.tmp", "half", True),
]


@pytest.mark.parametrize(("name", "content", "removed"), RECORDS)
def test_mend_removes_what_dvc_had_half_written(tmp_path: Path, name: str, content: str | None, removed: bool) -> None:
    elsewhere = name.replace(".dvc/cache", "store")
    places = [(tmp_path / "a", "", name), (tmp_path / "b", "", elsewhere), (tmp_path / "c", "a/project", name)]
    for root, within, place in places:
        project = root / within
        project.mkdir(parents=True)
        (root / ".dvc").mkdir()
        (root / ".dvc/config.local").write_text(f"[cache]\ndir = {root / 'store'}\n" if place != name else "")
        path = (root if place.startswith((".dvc", "store")) else project) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if content is None else path.write_text(content)
        assert mend(project) == ([path] if removed else [])
        assert path.exists() != removed


def test_mend_reads_every_lock_of_the_repository_as_dvc_does(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    for name in ("ours", "theirs/sub", "whole", "other repository"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "dvc.lock").write_text(WHOLE if name == "whole" else "")
    (tmp_path / "other repository/.dvc").mkdir()
    ours = tmp_path / "ours"
    assert mend(ours) == [ours / "dvc.lock", ours / "../theirs/sub/dvc.lock"]
    assert sorted(tmp_path.rglob("dvc.lock")) == [tmp_path / n / "dvc.lock" for n in ("other repository", "whole")]


@pytest.mark.parametrize(
    ("words", "writes"),
    [
        ("dvc repro", True),
        ("dvc exp run --temp", True),
        ("dvc -q checkout", True),
        ("python -m stages.train", True),
        ("dvc exp show --json", False),
        ("python -m dvc status -q", False),
        ("dvc plots diff", False),
        ("vim dvc.yaml", False),
    ],
)
def test_busy_is_what_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, writes: bool) -> None:
    running = SimpleNamespace(pid=7, info={"cmdline": words.split(), "cwd": str(tmp_path / ".dvc/tmp/exps/x")})
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: [running])
    assert at_work(tmp_path) == ([7] if writes else [])
    lock = tmp_path / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text('{"read": {"data": [{"pid": 7, "cmd": "dvc"}]}}')
    project = tmp_path / "sub-folder"  # the same, where the project is a part of the repository
    project.mkdir()
    assert at_work(project) == at_work(tmp_path)
    assert mend(project) == ([lock] if words.startswith("vim") else [])


# --- whole stages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny workspace that the test may leave in any state."""
    shutil.copytree(tiny, tmp_path / "own", ignore=shutil.ignore_patterns("cache", "tmp"))
    return tmp_path / "own"


@contextmanager
def launched(workspace: Path, stage: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, *arguments(stage)]
    process = subprocess.Popen(
        words, cwd=workspace, env=ENVIRONMENT, stderr=subprocess.DEVNULL, preexec_fn=heed_signals
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def unfinished(workspace: Path, pattern: str) -> list[Path]:
    return sorted((workspace / ".dvc/tmp/lfm").glob(f"*/*/{pattern}.safetensors"))


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGKILL, "train"),
        (signal.SIGTERM, "classifier"),
        (signal.SIGINT, "autoencoder"),
        (signal.SIGKILL, "distill"),
        (signal.SIGTERM, "second_classifier"),
    ],
)
def test_an_ended_training_continues_to_the_same_bytes(own: Path, number: signal.Signals, stage: str) -> None:
    set_params(own, runtime__checkpoint_every=4, runtime__progress=False)
    before = outs(own)
    with launched(own, stage) as process:
        wait_for(lambda: unfinished(own, "step-*"), "it ended before it was disturbed", process)
        process.send_signal(number)
        assert process.wait() == (-9 if number == signal.SIGKILL else 128 + number)
    again = command("python", *arguments(stage), cwd=own)
    assert again.returncode == 0 and f"{stage}: continues at step " in again.stderr
    assert outs(own) == before and not list(own.rglob("*.part"))


def test_a_part_that_exists_is_not_made_again(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = outs(workspace)
    for stage in ("encode", "sample", "likelihood"):
        run_stage(stage)
        parts = unfinished(workspace, "*")
        damage(parts[0], "a flipped bit")
        stamps = {path: path.stat().st_mtime_ns for path in parts[1:]}
        run_stage(stage)
        assert "is damaged" in capsys.readouterr().err and parts == unfinished(workspace, "*")
        assert stamps == {path: path.stat().st_mtime_ns for path in parts[1:]}
        shutil.rmtree(workspace / ".dvc/tmp/lfm")
    assert outs(workspace) == before


def test_a_second_process_of_a_stage_is_refused(own: Path) -> None:
    with alone(own / ".dvc/tmp/lfm/fetch/lock"):
        result = command("python", "-m", "stages.fetch", cwd=own)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: .dvc/tmp/lfm/fetch/lock: busy, process {os.getpid()} ")


def test_a_stage_dies_with_its_dvc(own: Path) -> None:
    set_params(own, train__steps=100_000, train__snapshots=[0, 1], runtime__checkpoint_every=10)
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'stages.train'])"
    environment = ENVIRONMENT | {"DVC_STAGE": "train", "DVC_ROOT": str(own)}
    dvc = subprocess.Popen([sys.executable, "-c", code], cwd=own, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: unfinished(own, "step-*"), "it ended before it was disturbed", dvc)
    finally:
        dvc.kill()
        dvc.wait()
    with alone(own / ".dvc/tmp/lfm/train/lock"):  # within seconds, or it is busy
        pass

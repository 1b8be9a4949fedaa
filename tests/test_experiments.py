"""Several at once and elsewhere: experiments in temporary workspaces, queue workers, two `dvc repro`, a second clone."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from pipeline.machine import fingerprint
from pipeline.params import Loader, load_params
from tests.conftest import ENVIRONMENT, ROOT, command
from tests.test_pipeline import outs, ran

COMMITTED = (
    ".gitignore",
    ".dvc/.gitignore",
    ".dvc/config",
    "data/.gitignore",
    "models/.gitignore",
    "reports/.gitignore",
)
WHO = {f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def done(cwd: Path, line: str, **environment: str) -> str:
    """What a command that must succeed printed."""
    result = command(*line.split(), cwd=cwd, **WHO, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def origin(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository as the project's, in which everything has run, and the DVC remote to which it was pushed."""
    base = tmp_path_factory.mktemp("experiments")
    target = base / "origin"
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("tmp"))
    for name in COMMITTED:
        shutil.copyfile(ROOT / name, target / name)
    done(target, "git init -q")
    done(target, f"dvc remote add -q -d shared {base / 'remote'}")
    done(target, "git add -A")
    done(target, "git -c commit.gpgsign=false commit -qm everything")
    done(target, "dvc push -q --run-cache")
    return target


@pytest.fixture
def empty(origin: Path, tmp_path: Path) -> Path:
    """A clean clone with nothing in its cache."""
    done(tmp_path, f"git clone -q {origin} clone")
    return tmp_path / "clone"


@pytest.fixture
def clone(empty: Path) -> Path:
    """A clean clone that has fetched everything."""
    done(empty, "dvc pull -q")
    return empty


def tracked(workspace: Path) -> dict[str, bytes]:
    """The files that git knows, as they are."""
    return {name: (workspace / name).read_bytes() for name in done(workspace, "git ls-files").split()}


def experiment(workspace: Path, name: str, path: str) -> str:
    """A file of an experiment."""
    found = done(workspace, "git for-each-ref --format=%(refname) refs/exps").split()
    return done(workspace, f"git show {next(ref for ref in found if ref.endswith('/' + name))}:{path}")


def wait_for(there: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 300
    while not (found := there()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


# --- a second clone ----------------------------------------------------------------------------------------------------


def test_a_second_clone_runs_nothing_and_has_the_same_bytes(origin: Path, empty: Path) -> None:
    assert ran(done(empty, "dvc repro --pull --allow-missing")) == []
    done(empty, "dvc pull -q")
    assert ran(done(empty, "dvc repro")) == []
    assert outs(empty) == outs(origin)


def test_a_temporary_experiment_of_an_empty_clone_has_its_code_and_data(empty: Path) -> None:
    module = empty / "lfm/neighbours.py"
    module.write_text(module.read_text() + "\n\ndef memorised(*_: object) -> float:\n    return 0.5\n")
    before, old = tracked(empty), json.loads((empty / "reports/metrics.json").read_text())
    flags = "-S evaluate.neighbours=3 -S evaluate.nearest_quantile=1e-5"
    said = done(empty, f"dvc exp run --temp --pull --allow-missing -n mine {flags}")
    assert ran(said) == ["evaluate", "report"]
    assert tracked(empty) == before

    new = json.loads(experiment(empty, "mine", "reports/metrics.json"))
    assert new["memorised"] == 50.0 != old["memorised"]  # as the module says that was edited and not committed
    shown = json.loads(done(empty, "dvc exp show --json"))[1]["experiments"][0]["revs"][0]
    assert shown["name"] == "mine" and shown["data"]["metrics"]["reports/metrics.json"]["data"] == new

    done(empty, "dvc pull -q")
    done(empty, "dvc exp apply mine")
    assert json.loads((empty / "reports/metrics.json").read_text()) == new
    applied = load_params(empty / "params.yaml").evaluate
    assert (applied.neighbours, applied.nearest_quantile) == (3, 1e-5)
    assert ran(done(empty, "dvc repro")) == []


def test_a_relative_mirror_is_found_from_a_temporary_workspace(clone: Path, mirror: str) -> None:
    if Path(mirror).is_dir():
        (clone / ".dvc/tmp/mirror").symlink_to(Path(mirror).resolve())
        mirror = ".dvc/tmp/mirror"
    said = done(clone, "dvc exp run --temp -n real -S data.dataset=mnist fetch", LFM_MIRROR=mirror)
    assert "data/images.h5: mnist, 50,000 / 10,000 / 10,000 images" in said


# --- -S ----------------------------------------------------------------------------------------------------------------


def leaves() -> Iterator[tuple[str, str, str]]:
    """Section, key and value of every parameter, the value as it is written in params.yaml."""
    section = ""
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if found := re.match(r"(\w+):", line):
            section = found[1]
        elif found := re.match(r"  (\w+): (.+?)(?: #.*)?$", line):
            yield section, found[1], found[2]


def test_every_parameter_can_be_set_by_a_flag(tmp_path: Path) -> None:
    flags, tree = [f"{section}.{key}={value}" for section, key, value in leaves()], yaml.safe_load("{}")
    for section, key, _ in leaves():
        tree.setdefault(section, {})[key] = "unset"
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    apply_overrides(path, flags)
    assert len(flags) > 60 and load_params(path) == load_params(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("train.learning_rate=1e-5", 1e-5),
        ("train.learning_rate=1e-3", 1e-3),
        ("train.gradient_clip=null", None),
        ("train.snapshots=[0,0.5,1]", [0, 0.5, 1]),
        ("train.snapshots=100", 100),
        ("train.compile=true", True),
        ("sample.guidance_interval=[0.4,0.8]", [0.4, 0.8]),
        ("autoencoder.widths=[8,16]", [8, 16]),
        ("autoencoder.revision=31f26fdeee1355a5c34592e401dd41e45d25a493", "31f26fdeee1355a5c34592e401dd41e45d25a493"),
        ("autoencoder.source=stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-ema"),
    ],
)
def test_a_flag_arrives_as_it_was_meant(tmp_path: Path, flag: str, value: object) -> None:
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    apply_overrides(path, [flag])
    section, _, key = flag.partition("=")[0].partition(".")
    found = getattr(getattr(load_params(path), section), key)
    assert found == value and type(found) is type(value)


# --- at the same time --------------------------------------------------------------------------------------------------


@contextmanager
def begun(cwd: Path, line: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs meanwhile, ended with its stage in any case."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(line.split(), cwd=cwd, env=ENVIRONMENT | WHO, stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()


def at_work(workspace: Path, stage: str) -> int:
    """The process that holds a stage's scratch folder of one fingerprint."""
    locks = list((workspace / ".dvc/tmp/lfm" / stage).glob("*/lock"))
    return int(locks[0].read_text().strip() or 0) if locks else 0


def test_a_second_repro_is_busy_an_experiment_waits_and_an_edit_is_refused(clone: Path) -> None:
    params, before, made = clone / "params.yaml", (clone / "params.yaml").read_text(), outs(clone)
    lock = (clone / "dvc.lock").read_bytes()
    params.write_text(before.replace("images: 50", "images: 60"))
    with begun(clone, "dvc repro likelihood") as first:
        stage = wait_for(lambda: at_work(clone, "likelihood"), "no stage runs")
        os.kill(stage, signal.SIGSTOP)

        second = command("dvc", "repro", "likelihood", cwd=clone)
        assert second.returncode == 255 and ran(second.stdout) == []
        assert f"is busy, it is being blocked by:\n  (PID {first.pid}): " in second.stderr

        with begun(clone, "dvc exp run --temp -n beside likelihood") as beside:
            lines = beside.stderr
            assert lines
            heard = wait_for(lambda: re.search(r"likelihood: .*", lines.readline()), "nothing was said")
            assert heard[0] == f"likelihood: process {stage} makes the very same; waiting for it"
            params.write_text(before)
            os.kill(stage, signal.SIGCONT)
            _, said = first.communicate(timeout=300)
            assert first.returncode == 255
            assert "error: params.yaml: likelihood was edited while this stage ran; run `dvc repro` again\n" in said
            _, said = beside.communicate(timeout=300)
            assert beside.returncode == 0, said
    assert (clone / "dvc.lock").read_bytes() == lock
    assert ran(done(clone, "dvc repro")) == [] and outs(clone) == made
    assert yaml.load(experiment(clone, "beside", "params.yaml"), Loader)["likelihood"]["images"] == 60
    recorded = yaml.safe_load(experiment(clone, "beside", "dvc.lock"))["stages"]["likelihood"]
    assert recorded["params"]["params.yaml"]["likelihood"]["images"] == 60
    assert recorded["outs"] != yaml.safe_load(lock)["stages"]["likelihood"]["outs"]


def workers(workspace: Path) -> list[psutil.Process]:
    """Processes of DVC's queue that were started here."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(workspace)) and "queue" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture
def queueing(clone: Path) -> Iterator[Path]:
    """A clone whose queue is stopped in the end."""
    yield clone
    command("dvc", "queue", "stop", "--kill", cwd=clone)
    for process in workers(clone):
        with suppress(psutil.Error):
            process.kill()


def test_two_queue_workers_that_need_the_same_stage_both_succeed(queueing: Path) -> None:
    before, made = tracked(queueing), outs(queueing)
    for zoom in (1, 3):
        flags = f"-S likelihood.images=60 -S report.zoom={zoom}"
        done(queueing, f"dvc exp run -q --queue -n zoom{zoom} {flags} likelihood")
    done(queueing, "dvc queue start -q -j 2")
    status = r"\w+ +zoom\d .*(Success|Failed)"
    wait_for(lambda: len(re.findall(status, done(queueing, "dvc queue status"))) == 2, "the queue is not done")
    assert re.findall(status, done(queueing, "dvc queue status")) == ["Success", "Success"]

    assert ["likelihood"] in [ran(done(queueing, f"dvc queue logs zoom{zoom}")) for zoom in (1, 3)]
    records = [yaml.safe_load(experiment(queueing, f"zoom{zoom}", "dvc.lock"))["stages"] for zoom in (1, 3)]
    assert records[0] == records[1] != yaml.safe_load((queueing / "dvc.lock").read_text())["stages"]
    read = [yaml.load(experiment(queueing, f"zoom{zoom}", "params.yaml"), Loader)["report"]["zoom"] for zoom in (1, 3)]
    assert read == [1, 3]
    # The second one took over what the first had done, from the project where DVC was started.
    assert len(list((queueing / ".dvc/tmp/lfm/likelihood").glob("*/lock"))) == 1
    assert tracked(queueing) == before and outs(queueing) == made and ran(done(queueing, "dvc repro")) == []

    done(queueing, "dvc queue stop -q")
    wait_for(lambda: not workers(queueing), "workers go on")


# --- other machines ----------------------------------------------------------------------------------------------------


def test_unfinished_work_of_another_machine_is_not_taken_over(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    start = fingerprint.Fingerprint("train", ("model", "flow", "train"), load_params(Path("params.yaml")))
    here = fingerprint.machine()
    machines = [{}, {"device": "NVIDIA H100"}, {"processor": "arm64 DEFAULT"}, {"threads": 64}]
    keys = []
    for other in machines:
        monkeypatch.setattr(fingerprint, "machine", lambda other=other: here | other)
        keys.append(start.key())
    monkeypatch.setattr(fingerprint, "machine", lambda: here)
    assert start.key() == keys[0]
    monkeypatch.setattr(fingerprint.importlib.metadata, "version", lambda name: "0.0")
    assert len({*keys, start.key()}) == len(machines) + 1


def test_weights_name_no_device_and_no_version_of_torch(tiny: Path) -> None:
    found = sorted(tiny.glob("models/*/*.safetensors"))
    assert [path.parent.name for path in found] == ["autoencoder", "classifier", "flow"]
    for path in found:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert header.pop("__metadata__", {}) in ({}, {"format": "pt"})
        assert all(set(entry) == {"dtype", "shape", "data_offsets"} for entry in header.values())
        assert {entry["dtype"] for entry in header.values()} <= {"F32", "I64"}

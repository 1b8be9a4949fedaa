"""Several at once and elsewhere: experiments in temporary workspaces, queue workers, two `dvc repro`, a second clone."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from pipeline.params import load_params, load_yaml
from tests.conftest import ENVIRONMENT, ROOT, WHO, command, ran, run_in, wait_for
from tools.workspace import outs

COMMITTED = [
    ".gitignore",
    ".dvc/.gitignore",
    ".dvc/config",
    "data/.gitignore",
    "models/.gitignore",
    "reports/.gitignore",
]


def output(cwd: Path, line: str, **environment: str) -> str:
    """Of a command that must succeed."""
    return run_in(cwd, *line.split(), **environment)


@pytest.fixture(scope="module")
def origin(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository as the project's, in which everything has run, and the DVC remote to which it was pushed."""
    base = tmp_path_factory.mktemp("experiments")
    target = base / "origin"
    shutil.copytree(tiny, target, ignore=shutil.ignore_patterns("tmp"))
    for name in COMMITTED:
        shutil.copyfile(ROOT / name, target / name)
    output(target, "git init -q")
    output(target, f"dvc remote add -q -d shared {base / 'remote'}")
    output(target, "git add -A")
    output(target, "git -c commit.gpgsign=false commit -qm everything")
    output(target, "dvc push -q --run-cache")
    return target


@pytest.fixture
def empty(origin: Path, tmp_path: Path) -> Path:
    """A clean clone with nothing in its cache."""
    output(tmp_path, f"git clone -q {origin} clone")
    return tmp_path / "clone"


@pytest.fixture
def clone(empty: Path) -> Path:
    """A clean clone that has fetched everything."""
    output(empty, "dvc pull -q")
    return empty


def tracked(workspace: Path) -> dict[str, bytes]:
    """The files that git knows, as they are."""
    return {name: (workspace / name).read_bytes() for name in output(workspace, "git ls-files").split()}


def experiment(workspace: Path, name: str, path: str) -> str:
    """A file of an experiment."""
    refs = output(workspace, "git for-each-ref --format=%(refname) refs/exps").split()
    return output(workspace, f"git show {next(ref for ref in refs if ref.endswith('/' + name))}:{path}")


# --- a second clone ----------------------------------------------------------------------------------------------------


def test_a_second_clone_runs_nothing_and_has_the_same_bytes(origin: Path, empty: Path) -> None:
    assert ran(output(empty, "dvc repro --pull --allow-missing")) == []
    output(empty, "dvc pull -q")
    assert ran(output(empty, "dvc repro")) == []
    assert outs(empty) == outs(origin)


def test_a_temporary_experiment_of_an_empty_clone_has_its_code_and_data(empty: Path) -> None:
    module = empty / "lfm/evaluation/neighbours.py"
    module.write_text(module.read_text() + "\n\ndef memorised(*_: object) -> float:\n    return 0.5\n")
    before, old = tracked(empty), json.loads((empty / "reports/metrics.json").read_text())
    flags = "-S evaluate.neighbours=3 -S evaluate.nearest_quantile=1e-5"
    printed = output(empty, f"dvc exp run --temp --pull --allow-missing -n mine {flags}")
    assert ran(printed) == ["evaluate", "report"]
    assert tracked(empty) == before

    new = json.loads(experiment(empty, "mine", "reports/metrics.json"))
    assert new["memorised"] == 50.0 != old["memorised"]  # as the module says that was edited and not committed
    row = json.loads(output(empty, "dvc exp show --json"))[1]["experiments"][0]["revs"][0]
    assert row["name"] == "mine" and row["data"]["metrics"]["reports/metrics.json"]["data"] == new

    output(empty, "dvc pull -q")
    output(empty, "dvc exp apply mine")
    assert json.loads((empty / "reports/metrics.json").read_text()) == new
    applied = load_params(empty / "params.yaml").evaluate
    assert (applied.neighbours, applied.nearest_quantile) == (3, 1e-5)
    assert ran(output(empty, "dvc repro")) == []


def test_a_relative_mirror_is_found_from_a_temporary_workspace(clone: Path, mirror: str) -> None:
    if Path(mirror).is_dir():
        (clone / ".dvc/tmp/mirror").symlink_to(Path(mirror).resolve())
        mirror = ".dvc/tmp/mirror"
    printed = output(clone, "dvc exp run --temp -n real -S data.dataset=mnist fetch", LFM_MIRROR=mirror)
    assert "data/images.h5: mnist, 50,000 / 10,000 / 10,000 images" in printed


# --- -S ----------------------------------------------------------------------------------------------------------------


def test_every_parameter_can_be_set_by_a_flag(tmp_path: Path) -> None:
    flags, tree, path = [], dict[str, dict[str, str]](), tmp_path / "params.yaml"
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if section := re.match(r"(\w+):", line):
            leaves = tree[name := section[1]] = {}
        elif leaf := re.match(r"  (\w+): (.+?)(?: #.*)?$", line):
            leaves[leaf[1]] = "unset"
            flags.append(f"{name}.{leaf[1]}={leaf[2]}")  # the value as it is written in params.yaml
    path.write_text(yaml.safe_dump(tree))
    apply_overrides(path, flags)
    assert len(flags) > 60 and load_params(path) == load_params(ROOT / "params.yaml")


REVISION = "31f26fdeee1355a5c34592e401dd41e45d25a493"
FLAGS = {
    "train.learning_rate=1e-5": 1e-5, "train.learning_rate=1e-3": 1e-3, "train.gradient_clip=null": None,
    "train.snapshots=[0,0.5,1]": [0, 0.5, 1], "train.snapshots=100": 100, "train.compile=true": True,
    "sample.guidance_interval=[0.4,0.8]": [0.4, 0.8], "autoencoder.widths=[8,16]": [8, 16],
    f"autoencoder.revision={REVISION}": REVISION, "autoencoder.source=owner/name": "owner/name",
}  # fmt: skip


@pytest.mark.parametrize(("flag", "value"), FLAGS.items())
def test_a_flag_arrives_as_it_was_meant(tmp_path: Path, flag: str, value: object) -> None:
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    apply_overrides(path, [flag])
    section, _, key = flag.partition("=")[0].partition(".")
    set_to = getattr(getattr(load_params(path), section), key)
    assert set_to == value and type(set_to) is type(value)


# --- at the same time --------------------------------------------------------------------------------------------------


@contextmanager
def running(cwd: Path, line: str) -> Iterator[subprocess.Popen[str]]:
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
    with running(clone, "dvc repro likelihood") as first:
        stage = wait_for(lambda: at_work(clone, "likelihood"), "no stage runs")
        os.kill(stage, signal.SIGSTOP)

        second = command("dvc", "repro", "likelihood", cwd=clone)
        assert second.returncode == 255 and ran(second.stdout) == []
        assert f"is busy, it is being blocked by:\n  (PID {first.pid}): " in second.stderr

        with running(clone, "dvc exp run --temp -n beside likelihood") as beside:
            lines = beside.stderr
            assert lines
            wait_for(lambda: re.search(rf"likelihood: process {stage} .*waiting", lines.readline()), "no line came")
            params.write_text(before)
            os.kill(stage, signal.SIGCONT)
            _, stderr = first.communicate(timeout=300)
            assert first.returncode == 255
            assert "error: params.yaml: likelihood was edited while this stage ran" in stderr
            _, stderr = beside.communicate(timeout=300)
            assert beside.returncode == 0, stderr
    assert (clone / "dvc.lock").read_bytes() == lock
    assert ran(output(clone, "dvc repro")) == [] and outs(clone) == made
    assert load_yaml(experiment(clone, "beside", "params.yaml"))["likelihood"]["images"] == 60
    recorded = yaml.safe_load(experiment(clone, "beside", "dvc.lock"))["stages"]["likelihood"]
    assert recorded["params"]["params.yaml"]["likelihood"]["images"] == 60
    assert recorded["outs"] != yaml.safe_load(lock)["stages"]["likelihood"]["outs"]


def workers(workspace: Path) -> list[psutil.Process]:
    """Processes of DVC's queue that were started here."""
    running = list(psutil.process_iter(["cwd", "cmdline"]))
    here = [p for p in running if (p.info["cwd"] or "").startswith(str(workspace))]
    return [process for process in here if "queue" in " ".join(process.info["cmdline"] or [])]


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
        output(queueing, f"dvc exp run -q --queue -n zoom{zoom} {flags} likelihood")
    output(queueing, "dvc queue start -q -j 2")
    status = r"\w+ +zoom\d .*(Success|Failed)"
    wait_for(lambda: len(re.findall(status, output(queueing, "dvc queue status"))) == 2, "the queue is not done")
    assert re.findall(status, output(queueing, "dvc queue status")) == ["Success", "Success"]

    assert ["likelihood"] in [ran(output(queueing, f"dvc queue logs zoom{zoom}")) for zoom in (1, 3)]
    records = [yaml.safe_load(experiment(queueing, f"zoom{zoom}", "dvc.lock"))["stages"] for zoom in (1, 3)]
    assert records[0] == records[1] != yaml.safe_load((queueing / "dvc.lock").read_text())["stages"]
    for zoom in (1, 3):
        assert load_yaml(experiment(queueing, f"zoom{zoom}", "params.yaml"))["report"]["zoom"] == zoom
    # The second one took over what the first had done, from the project where DVC was started.
    assert len(list((queueing / ".dvc/tmp/lfm/likelihood").glob("*/lock"))) == 1
    assert tracked(queueing) == before and outs(queueing) == made and ran(output(queueing, "dvc repro")) == []

    output(queueing, "dvc queue stop -q")
    wait_for(lambda: not workers(queueing), "workers go on")


# --- other machines ----------------------------------------------------------------------------------------------------


def test_weights_name_no_device_and_no_version_of_torch(tiny: Path) -> None:
    files = sorted(tiny.glob("models/**/*.safetensors"))
    assert len(files) == 10  # of flow two, of latent_flow four
    for path in files:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert header.pop("__metadata__", {}) in ({}, {"format": "pt"})
        assert all(set(entry) == {"dtype", "shape", "data_offsets"} for entry in header.values())
        assert {entry["dtype"] for entry in header.values()} <= {"F32", "I64"}


# --- compared ----------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_run_and_compared(queueing: Path) -> None:
    before = tracked(queueing)
    flags = "--seeds 2 -S sample.solver=euler --metric nfe --metric fd_generated --run"
    printed = output(queueing, f"python -m tools.compare {flags}", PYTHONPATH=str(ROOT))
    assert "3 experiments are missing" in printed  # the commit itself is the baseline's seed 0
    assert tracked(queueing) == before

    figures: dict[str, list[float]] = {"midpoint": [], "euler": []}
    rows = json.loads(output(queueing, "dvc exp show --json"))[1]
    for row in [rows, *(experiment["revs"][0] for experiment in rows["experiments"])]:
        solver = row["data"]["params"]["params.yaml"]["data"]["sample"]["solver"]
        figures[solver].append(row["data"]["metrics"]["reports/metrics.json"]["data"]["fd_generated"])
    assert [len(values) for values in figures.values()] == [2, 2]
    again = output(queueing, "python -m tools.compare --metric nfe --metric fd_generated", PYTHONPATH=str(ROOT))
    assert again in printed
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in again.splitlines() if line.startswith("|")]
    assert table[2] == ["nfe", "baseline", "2", "20 ± 0", "", ""]
    assert table[3][1:] == ["sample.solver=euler", "2", "10 ± 0", "-10", "better"]
    means = [sum(values) / 2 for values in figures.values()]
    assert float(table[5][4].split()[0]) == pytest.approx(means[1] - means[0], rel=0.05)

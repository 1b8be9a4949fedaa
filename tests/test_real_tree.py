"""DVC's everyday commands in a clone of the whole repository, with sweeps and page, on its own and within a larger one."""

import shutil
from pathlib import Path

import pytest

from pipeline.paths import user_path
from tests.conftest import ROOT, command, ran, run_in
from tools.workspace import outs

# As a person types them one after the other; `one` is an experiment that draws the page's pictures larger.
COMMANDS = """
checkout
repro
push --run-cache
fetch
status dvc.yaml
data status
exp run --temp -n one -S report.zoom=1
exp apply one
exp branch one branch
exp push origin one
gc -w -f
pull
repro
"""


@pytest.fixture(params=["own repository", "larger/größe"])
def project(tiny: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A clone of the whole tree, its parameters, lock and cache those of a run with presets/tiny. One is a DVC repository
    itself, in a path with a space; the other one lies in a sub-folder of one, whose name is not ASCII."""
    within = "/" in request.param
    files = command("git", "ls-files", "-z", cwd=ROOT)
    if files.returncode:
        pytest.skip("no git repository: the whole tree is not known")
    top = tmp_path / request.param.partition("/")[0]
    target = tmp_path / request.param
    for name in (name for name in files.stdout.split("\0") if name and (ROOT / name).is_file()):
        if not (within and name.startswith(".dvc/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    for name in ("params.yaml", "dvc.lock"):
        shutil.copyfile(tiny / name, target / name)
    run_in(tmp_path, "git", "init", "-q", "--bare", "bare.git")
    run_in(top, "git", "init", "-q")
    if within:
        run_in(top, "dvc", "init", "-q")
    shutil.copytree(tiny / ".dvc/cache", top / ".dvc/cache")
    run_in(top, "dvc", "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote"))
    run_in(top, "git", "add", "-A")
    run_in(top, "git", "-c", "commit.gpgsign=false", "commit", "-qm", "everything")
    run_in(top, "git", "remote", "add", "origin", str(tmp_path / "bare.git"))
    return target


def test_everyday_commands_end_with_0(project: Path, tiny: Path) -> None:
    output = {line: run_in(project, "dvc", *line.split()) for line in COMMANDS.strip().splitlines()}
    experiment = next(line for line in output if line.startswith("exp run"))
    assert {line: ran(text) for line, text in output.items() if ran(text)} == {experiment: ["report"]}
    assert "Data and pipelines are up to date." in output["status dvc.yaml"]
    changed = {name for name, digest in outs(project).items() if digest != outs(tiny)[name]}
    assert changed and all(name.startswith(("reports/report.html", "reports/pictures")) for name in changed)


def test_a_stage_in_a_sub_folder_of_a_repository_makes_none_of_its_own(project: Path) -> None:
    run_in(project, "dvc", "checkout", "-q", "dvc.yaml")
    assert ran(run_in(project, "dvc", "repro", "-f", "-s", "fetch")) == ["fetch"]
    homes = [path for path in project.parent.rglob(".dvc") if path.is_dir()]
    within = project.name == "größe"
    assert homes == [project.parent / ".dvc" if within else project / ".dvc"]
    assert (homes[0] / "tmp/lfm" / (project.name if within else "") / "fetch/lock").is_file()


@pytest.mark.parametrize("place", ["", "larger/größe"])
def test_a_relative_path_begins_in_the_project_where_dvc_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Also in DVC's temporary workspaces, which lie elsewhere and have a `.dvc` of their own."""
    temporary = tmp_path / ".dvc/tmp/exps/abc"
    for root in (tmp_path, temporary):
        (root / ".dvc").mkdir(parents=True, exist_ok=True)
        (root / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path / place)
    assert user_path("my/data").resolve() == tmp_path / place / "my/data"
    assert user_path("/my/data").resolve() == Path("/my/data")
    monkeypatch.chdir(temporary / place)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert user_path("my/data").resolve() == tmp_path / place / "my/data"

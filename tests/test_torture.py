"""The short form of `make torture`: three kills, of three kinds, at work; the long one draws a hundred at any moment."""

import hashlib
import re
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.entry import read_entry
from tests.conftest import ROOT, STAGES, command, repro, set_params
from tests.kills import CHECKPOINT_EVERY, Blow, Pace, recorded, reference, torment
from tools.workspace import outs

BLOWS = [
    (Blow("train", "group", signal.SIGKILL, "at work", 0.5), Pace(60, 20), CHECKPOINT_EVERY, -signal.SIGKILL),
    (Blow("evaluate", "dvc", signal.SIGTERM, "at work", 0.7), Pace(60, 8), 1, -signal.SIGTERM),
    (Blow("sample", "stage", signal.SIGINT, "at work", 0.4), Pace(60, 9), 1, 255),
]


@pytest.mark.parametrize(("blow", "pace", "most", "code"), BLOWS, ids=[blow.stage for blow, *_ in BLOWS])
def test_a_plain_repro_after_a_kill_leaves_what_an_undisturbed_one_does(
    tiny: Path, tmp_path: Path, blow: Blow, pace: Pace, most: int, code: int
) -> None:
    codes, outcome = torment(tiny, tmp_path / "work", reference(tiny), [blow], {blow.stage: pace})
    assert outcome.trouble == []
    assert codes == [code]  # so it came in time
    assert outcome.twice <= most


def test_dvc_notices_a_flipped_bit_and_restores_the_file(tiny: Path, tmp_path: Path) -> None:
    work, whole = tmp_path / "work", outs(tiny)
    shutil.copytree(tiny, work)
    for name in whole:
        content = bytearray((work / name).read_bytes())
        content[len(content) // 2] ^= 1
        (work / name).write_bytes(content)
    status = command("dvc", "status", cwd=work).stdout
    for out in (out for stage in STAGES for out in read_entry(stage).outs):
        assert re.search(rf"modified: +{out}\n", status), out
    assert repro(work) == []  # all of it is in the cache
    assert outs(work) == whole


def test_a_corrupt_file_that_dvc_restores_from_its_cache_is_refused_and_mended(tiny: Path, tmp_path: Path) -> None:
    work, whole = tmp_path / "work", outs(tiny)
    shutil.copytree(tiny, work)
    latents, md5 = work / "data/latents.h5", hashlib.md5((tiny / "data/latents.h5").read_bytes()).hexdigest()
    cached = work / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(0o444)  # DVC takes it for what its name says
    latents.unlink()
    shutil.rmtree(work / "reports")
    set_params(work, likelihood__images=40)
    result = command("dvc", "repro", "likelihood", cwd=work)
    assert (
        result.returncode == 255
        and f"error: data/latents.h5: corrupt, or edited by hand (its md5 is {hashlib.md5(content).hexdigest()}, in dvc.lock {md5})"
        in result.stderr
    )
    set_params(work, likelihood__images=50)
    assert str(cached) in command("python", "-m", "tools.mend", cwd=work, PYTHONPATH=str(ROOT)).stderr
    latents.unlink()
    assert repro(work) == ["encode"]
    assert outs(work) == whole


def test_mend_removes_a_lock_file_that_dvc_left_half_written(tiny: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(tiny, work)
    (work / "dvc.lock").write_text("")  # as it is while DVC writes it
    result = command("dvc", "repro", cwd=work)
    assert result.returncode == 255 and "'./dvc.lock' validation failed." in result.stderr
    assert command("python", "-m", "tools.mend", cwd=work, PYTHONPATH=str(ROOT)).stderr.startswith("dvc.lock: ")
    assert repro(work) == []
    assert recorded(work) == recorded(tiny)

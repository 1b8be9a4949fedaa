"""The short form of `python -m tests.faults`: a few calls of each stage fail; all of them do in the long one."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, STAGES, command


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_where_the_system_refuses_a_call_a_stage_names_the_file_and_the_next_run_is_whole(tiny: Path) -> None:
    words = ("--workspace", str(tiny), "--sample", "2")
    result = command(sys.executable, "-m", "tests.faults", *words, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"| all | | | | | | {2 * len(STAGES)} |" in result.stdout

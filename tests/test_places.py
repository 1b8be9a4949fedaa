"""The short form of `python -m tests.places`: names are read, and text is printed, in the same way under every locale."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lfm.folder import folder_digest
from tests.conftest import ENVIRONMENT, ROOT
from tests.places import CLASSES, LOCALES, make_locale, pictures
from tests.test_sources import CONTENT, MD5, PACKED

READ = """
import json
from lfm.folder import folder_digest
from pipeline.paths import user_folder
from pipeline.sources.download import Published, fetch
digest, listing = folder_digest(user_folder("größe"))
print(json.dumps([digest, listing.classes, fetch(Published("mnist", "MNIST", "a.gz", MD5), [], False).hex()]))
"""
PRINT = {
    "pipeline": "import pipeline; print('≥ × \\udcff .')",
    "lfm": """
import click, lfm.terminal
lfm.terminal.run(click.Command("x", callback=lambda: click.echo("≥ × \\udcff .")), [])
""",
}


@pytest.fixture(scope="module", params=LOCALES)
def locale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = make_locale(tmp_path_factory.mktemp("locales")) if request.param == "ISO-8859-1" else {}
    if made is None:
        pytest.skip("no localedef, which makes an 8-bit locale")
    return LOCALES[request.param] | made


def run(code: str, folder: Path, environment: dict[str, str]) -> bytes:
    """What some code prints that must end with 0 and without a word on stderr."""
    (folder / "code.py").write_text(code, encoding="utf-8")
    everything = ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment
    result = subprocess.run([sys.executable, "code.py"], cwd=folder, env=everything, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout


def test_a_folder_and_a_mirror_are_read(locale: dict[str, str], tmp_path: Path) -> None:
    root = pictures(tmp_path / "größe", 2)
    (root / "a.gz").write_bytes(PACKED)
    read = run(READ.replace("MD5", repr(MD5)), tmp_path, locale | {"LFM_MIRROR": "größe"})
    assert json.loads(read) == [folder_digest(root)[0], sorted(CLASSES), CONTENT.hex()]


@pytest.mark.parametrize("where", PRINT)
def test_what_is_printed_ends_nothing(locale: dict[str, str], tmp_path: Path, where: str) -> None:
    assert run(PRINT[where], tmp_path, locale).endswith(b" .\n")

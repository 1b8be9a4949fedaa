"""What `make page` runs: export the model, build the page and serve it on this machine.

The last run's model where there is one (models/latent_flow and data/latents.h5), otherwise the bundled one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from lfm.page import serve
from pipeline.errors import UserError
from pipeline.progress import say
from pipeline.run import ending_in_one_line

WEB = Path("web")
DIST = WEB / "dist"
RUN = (Path("models/latent_flow"), Path("data/latents.h5"))
NODE = 20  # the oldest version that can build the page


def build() -> Path:
    """Export and build; the folder of the page."""
    install()
    name = "run" if all(path.exists() for path in RUN) else "bundled"
    say(f"page: exporting {'the model of the last run' if name == 'run' else 'the bundled model'}")
    # One stage alone: a page must not start a training.
    _run([sys.executable, "-m", "dvc", "repro", "-q", "-s", f"{WEB}/dvc.yaml:{name}"])
    say("page: building")
    model = os.fspath(Path("exported") / name)
    _run(["npm", "run", "--silent", "build", "--", "--logLevel", "warn"], WEB, LFM_PAGE_MODEL=model)
    size = sum(path.stat().st_size for path in DIST.rglob("*") if path.is_file())
    say(f"page: {DIST}, {size / 1e6:.1f} MB; any web server can host this folder")
    return DIST


def install(web: Path = WEB) -> None:
    """The npm packages of package-lock.json. Raises `UserError` where node is missing or too old."""
    if not shutil.which("node") or not shutil.which("npm"):
        raise UserError(f"the page needs node ≥ {NODE} and npm; install them (Debian: apt-get install nodejs npm)")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE:
        raise UserError(f"node is {version}; the page needs {NODE} or later")
    lock, installed = web / "package-lock.json", web / "node_modules/.installed.json"
    if installed.exists() and installed.read_bytes() == lock.read_bytes():
        return
    say("page: npm packages into web/node_modules")
    _run(["npm", "ci", "--silent", "--ignore-scripts"], web)
    shutil.copy(lock, installed)


def _run(command: list[str], folder: Path = Path(), **environment: str) -> None:
    if subprocess.run(command, cwd=folder, env=os.environ | environment).returncode:
        raise UserError(f"`{' '.join(command[:4])} …` failed; the lines above say why")


@click.command(help=__doc__)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--build", "alone", is_flag=True, help="Build alone, serve nothing.")
def main(port: int, alone: bool) -> None:
    with ending_in_one_line():
        folder = build()
        if not alone:
            serve(folder, port, lambda url: say(f"page: {url} (Ctrl-C ends it)"))


if __name__ == "__main__":
    main()

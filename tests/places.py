"""Runs every stage, and what a user types, under other locales and with another number of threads.

`python -m tests.places [--stages fetch,train] [--only POSIX,threads]`. A workspace in a folder named größe reads a folder of
images whose names and classes are not ASCII. Under every locale a stage has to end with 0, print no traceback and make the same
bytes. With two threads it has to make the same bytes, or to keep its unfinished work apart from that of one. Prints the tables of
docs/robustness.md; the exit code is 1 where a case went wrong.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lfm.folder import folder_digest
from tests.conftest import ENVIRONMENT, ROOT, STAGES, WHO, arguments, command, repro, run_in, set_params
from tests.trials import forget
from tools.workspace import make_workspace, outs

LATIN = "en_US.ISO-8859-1"
LOCALES = {
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # ASCII
    "ISO-8859-1": {"LC_ALL": LATIN},
}
THREADS = {
    "2 threads": {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "2"},
    "2 in BLAS alone": {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "2"},
}
CLASSES = ("é", "日本", "ß")
PLAIN = "plain"  # a clone: in an ASCII locale `dvc exp show` shows nothing of a repository whose path is not ASCII
COMMANDS = {
    "lfm sample": "lfm sample 2 0 -n 2 --seed 0 --model models/latent_flow -o é.png",
    "lfm logprob": "lfm logprob é.png --label 0 --steps 2 --model models/latent_flow",
    "lfm info": "lfm info models/latent_flow",
    "lfm digest": "lfm digest ../Bilder",
    "tools.compare": "python -m tools.compare",
    "tools.compare --help": "python -m tools.compare --help",
    "tools.mend": "python -m tools.mend",
}


def make_locale(folder: Path) -> dict[str, str] | None:
    """What makes the 8-bit locale known, in a folder; None where there is no localedef to make it."""
    if shutil.which("localedef"):
        command("localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / LATIN), cwd=folder)
    return {"LOCPATH": str(folder)} if (folder / LATIN).is_dir() else None


def pictures(root: Path, each: int = 70) -> Path:
    """A folder of grey images, each class of its own brightness."""
    for label, name in enumerate(CLASSES):
        g = np.random.default_rng(label)
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = g.integers(0, 80, (28, 28)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}→.png")
    return root


def make(folder: Path) -> Path:
    """The workspace, in which everything has run: a git and DVC repository, one thread, UTF-8."""
    root, workspace = pictures(folder / "Bilder"), folder / "größe"
    make_workspace(ROOT, workspace, ROOT / "presets/tiny")
    digest, _ = folder_digest(root)
    set_params(workspace, data__dataset="folder", data__root="../Bilder", data__digest=digest, data__image_size=32)
    (workspace / ".dvc/config").write_text((ROOT / ".dvc/config").read_text(encoding="utf-8"), encoding="utf-8")
    run_in(workspace, "git", "init", "-q")
    repro(workspace)
    run_in(workspace, "git", "add", "-A")
    run_in(workspace, "git", "-c", "commit.gpgsign=false", "commit", "-qm", "everything")
    run_in(folder, "git", "clone", "-q", "größe", PLAIN)
    return workspace


def start(workspace: Path, words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        words, cwd=workspace, capture_output=True, env=ENVIRONMENT | WHO | {"PYTHONPATH": str(ROOT)} | environment
    )


def keys(workspace: Path, stage: str) -> set[str]:
    """The folders of a stage's unfinished work."""
    return {path.parent.name for path in (workspace / ".dvc/tmp/lfm" / stage).glob("*/lock")}


def run_stage(workspace: Path, stage: str, environment: dict[str, str], whole: dict[str, str]) -> tuple[str, str]:
    """Run one stage. Returns a word for the table, and what was wrong."""
    forget(stage, workspace)
    result = start(workspace, [sys.executable, *arguments(stage)], environment)
    told = (result.stdout + result.stderr).decode(errors="replace")
    if result.returncode or "Traceback" in told:
        return f"exit {result.returncode}", told[-1500:]
    differ = [name for name, digest in outs(workspace).items() if whole.get(name) != digest]
    return ("same" if not differ else "differs"), ", ".join(differ)


def stages_in(workspace: Path, names: list[str], places: dict[str, dict[str, str]]) -> int:
    """The table of stages; the workspace is as it was afterwards. Returns how many cases went wrong."""
    whole, wrong = outs(workspace), 0
    print(f"| stage | {' | '.join(places)} |\n|---|{'---|' * len(places)}")
    for stage in names:
        words, ours = list[str](), set[str]()
        for place, environment in {"": LOCALES["UTF-8"], **places}.items():
            word, what = run_stage(workspace, stage, environment, whole)
            ours = keys(workspace, stage) if not place else ours
            mixed = place in THREADS and word == "differs" and ours & keys(workspace, stage)
            if mixed or word not in (("same", "differs") if place in THREADS else ("same",)):
                wrong += 1
                print(f"{stage}, {place}: {word}: {what}{', continued by others' if mixed else ''}", file=sys.stderr)
            words += [word] if place else []
        if outs(workspace) != whole:
            run_stage(workspace, stage, LOCALES["UTF-8"], whole)
        print(f"| {stage} | {' | '.join(words)} |", flush=True)
    return wrong


def commands_in(workspace: Path, places: dict[str, dict[str, str]]) -> int:
    """The table of commands. Returns how many went wrong."""
    wrong, picture = 0, workspace / "é.png"
    print(f"\n| command | {' | '.join(places)} |\n|---|{'---|' * len(places)}")
    drawn = dict[str, bytes]()
    for name, line in COMMANDS.items():
        words = []
        for place, environment in places.items():
            if name == "tools.mend":
                (workspace / ".dvc/tmp/rwlock").write_text('{"write": {"da', encoding="utf-8")
            if name == "lfm sample":
                picture.unlink(missing_ok=True)
            place_of = workspace.parent / PLAIN if "compare" in name else workspace
            result = start(place_of, line.split(), environment)
            told = (result.stdout + result.stderr).decode(errors="replace")
            drawn[place] = picture.read_bytes() if picture.exists() else b""
            good = (
                not result.returncode and "Traceback" not in told and drawn[place] == drawn[next(iter(places))] != b""
            )
            words.append(
                "same" if good and name == "lfm sample" else "ends with 0" if good else f"exit {result.returncode}"
            )
            if not good:
                wrong += 1
                print(f"{name}, {place}: {told[-1500:]}", file=sys.stderr)
        print(f"| `{name}` | {' | '.join(words)} |", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--only", help="of the places, by name")
    flags = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        made = make_locale(folder)
        if made is None:
            sys.exit("localedef makes no ISO-8859-1 here; install it and its sources (Debian: apt-get install locales)")
        LOCALES["ISO-8859-1"] |= made
        chosen = flags.only.split(",") if flags.only else [*LOCALES, *THREADS]
        workspace = make(folder)
        places = {place: environment for place, environment in (LOCALES | THREADS).items() if place in chosen}
        wrong = stages_in(workspace, [stage for stage in flags.stages.split(",") if stage], places)
        wrong += commands_in(workspace, {place: e for place, e in places.items() if place in LOCALES})
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

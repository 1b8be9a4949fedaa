"""The command `lfm`: what it prints, what it writes, and how it fails.

The words of help and messages are in tests/golden/cli. To change them on purpose:
`LFM_UPDATE_GOLDEN=1 pytest -n 0 tests/test_cli.py`, and read the diff.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from lfm import LatentFlow, Samples, terminal
from lfm.cli import commands
from lfm.folder import folder_digest
from lfm.model import BUNDLED
from lfm.nets.transformer import Transformer
from lfm.sampling.sampler import SOLVERS
from tests.conftest import ENVIRONMENT, ROOT, heed_signals
from tests.test_images import seven

GOLDEN = ROOT / "tests/golden/cli"
PYTHON = (sys.executable, "-m", "lfm")
HERE = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}


class Result(NamedTuple):
    code: int
    out: str
    err: str


Shell = Callable[..., Result]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs words of a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Result:
        capsys.readouterr()
        code = terminal.run(commands, [str(word) for word in words])
        return Result(code, *capsys.readouterr())

    return run


def good(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def same(name: str, text: str) -> None:
    """Compare with a golden file, or write it."""
    path = GOLDEN / name
    if os.environ.get("LFM_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"not what {path} says; see the top of this file"


# --- words -----------------------------------------------------------------------------------------------------------


def test_the_help_of_every_command(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    texts = [good(shell("--help")).out] + [good(shell(name, "--help")).out for name in sorted(commands.commands)]
    same("help.txt", "\n".join(texts))
    assert good(shell()).out == texts[0]
    assert ", ".join(SOLVERS) in " ".join(texts[-2].split())


def test_version(shell: Shell) -> None:
    import lfm

    assert good(shell("--version")).out == f"lfm {lfm.__version__}\n"


def prepare(folder: Path) -> None:
    """What the wrong commands are given."""
    (folder / "text.png").write_text("no image")
    Image.new("L", (60, 60), 255).save(folder / "blank.png")
    (folder / "huge.pgm").write_bytes(b"P5 20000 20000 255\n")
    seven("L", 255, 0).save(folder / "scan.png")
    (folder / "empty").mkdir()
    shutil.copytree(BUNDLED, folder / "other")
    shutil.copy(BUNDLED.parent / "classifier/model.safetensors", folder / "other")
    bundled = LatentFlow.from_pretrained()
    config: dict[str, Any] = bundled.transformer.config | {"classes": 0, "depth": 1, "width": 16}
    flow = LatentFlow(Transformer(**config), bundled.config, autoencoder=bundled.autoencoder)
    flow.save_pretrained(folder / "unlabelled")


WRONG = {
    "colour that is no device": "sample 3 --device red",
    "device that is not here": "sample 3 --device cuda:99",
    "digest of a file": "digest scan.png",
    "digest of an empty folder": "digest empty",
    "digest of nothing": "digest nowhere",
    "file that exists": "sample 3 -o scan.png",
    "folder as file": "path 3 -o empty",
    "guidance": "sample 3 --guidance nan",
    "interpolate from nothing": "interpolate nothing.png 3",
    "label, out of range": "sample 3 12",
    "label, range upside down": "sample 9-0",
    "label, word": "sample three",
    "labels, far too many in an animation": "path 0-200",
    "like, of no picture of lfm": "sample --like scan.png",
    "like, of nothing": "sample --like nothing.png",
    "model of another project": "sample 3 --model other",
    "model that is nowhere": "sample 3 --model nowhere",
    "model without flow.json": "info empty",
    "model without labels": "sample 3 --model unlabelled",
    "model without labels, transfer": "transfer scan.png --model unlabelled",
    "n of nothing": "sample 3 -n 0",
    "n of too many in a picture": "sample 3 -n 1000000",
    "n that is a word": "sample 3 -n many",
    "no such command": "draw 3",
    "no such flag": "sample 3 --sed 1",
    "output of another kind": "sample 3 -o digit.jpg",
    "output to a folder that is nowhere": "sample 3 -o nowhere/a.png",
    "output to standard output twice": "sample 3 -o - --json",
    "scan that is blank": "transfer blank.png",
    "scan that is huge": "logprob huge.pgm",
    "scan that is missing": "transfer",
    "scan that is no image": "reconstruct text.png",
    "scan, label out of range": "logprob scan.png --label 12 -q",
    "seed below 0": "sample 3 -s -1",
    "solver": "sample 3 --solver magic",
    "steps": "sample 3 --steps 0",
}


def test_a_mistake_is_one_line_and_exit_code_2_and_writes_nothing(shell: Shell, tmp_path: Path) -> None:
    prepare(tmp_path)
    before, lines = sorted(tmp_path.rglob("*")), []
    for name, words in WRONG.items():
        code, out, err = shell(*words.split())
        assert (code, out) == (2, "") and err.count("\n") == 1, (name, code, out, err)
        message = err.replace(str(tmp_path), "TMP")
        if "device" in name:
            message = message.partition(" (")[0] + "\n"  # torch's words, which differ by machine
        lines.append(f"$ lfm {words}\n{message}")
    assert sorted(tmp_path.rglob("*")) == before
    same("mistakes.txt", "\n".join(lines))


def test_an_internal_error_is_one_line_and_exit_code_1(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm.cli.load", lambda *_: 1 / 0)
    code, _, err = shell("sample", 3)
    assert code == 1 and err.startswith("lfm: internal error (ZeroDivisionError: ") and err.count("\n") == 1


# --- pictures --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_like_makes_the_picture_again(shell: Shell, tmp_path: Path) -> None:
    first = good(shell("sample", 3, 1, "-n", 3, "--seed", 7, "--steps", 4, "--zoom", 2, "-o", "a.png"))
    assert first.err == "a.png: 6 pictures, seed 7, 4 evaluations each\n" and first.out == ""
    good(shell("sample", 3, 1, "-n", 3, "-s", 7, "--steps", 4, "--zoom", 2, "-o", "b.png"))
    good(shell("sample", "--like", "a.png", "-o", "c.png"))
    good(shell("sample", "--like", "a.png", "-s", 8, "-o", "d.png"))
    a, b, c, d = ((tmp_path / f"{name}.png").read_bytes() for name in "abcd")
    assert a == b == c != d
    assert Image.open(tmp_path / "a.png").size == ((3 * 29 - 1) * 2, (2 * 29 - 1) * 2)
    assert shell("sample", "--like", "a.png", "-o", "a.png").code == 2
    good(shell("sample", "--like", "a.png", "-o", "a.png", "--force"))
    assert (tmp_path / "a.png").read_bytes() == a
    flow = LatentFlow.from_pretrained()
    flow.config["train_sha256"] = "another run"
    flow.save_pretrained("other")
    assert "drawn by another model" in shell("sample", "--like", "a.png", "-m", "other", "-o", "e.png").err


def test_the_bundled_model_draws_with_its_flow_map_unless_the_flow_is_asked_for(shell: Shell) -> None:
    LatentFlow.from_pretrained().save_pretrained("other")
    nfe = {
        words: json.loads(good(shell("sample", 3, "-s", 0, "-o", "a.png", "--force", "--json", *words.split())).out)[
            "nfe"
        ]
        for words in ("", "--steps 2", "--steps 8", "--autoguidance 1", "--steps 8 --guidance 1", "-m other")
    }
    assert nfe == {
        "": 4, "--steps 2": 2, "--steps 8": 39, "--autoguidance 1": 23, "--steps 8 --guidance 1": 32, "-m other": 39,
    }  # fmt: skip


def test_a_seed_that_is_not_given_is_drawn_and_said(shell: Shell) -> None:
    seeds = {json.loads(good(shell("sample", "--steps", 1, "-o", f"{i}.png", "--json")).out)["seed"] for i in (1, 2)}
    assert len(seeds) == 2


def test_arrays_hold_what_the_library_draws(shell: Shell, tmp_path: Path, bundled: LatentFlow) -> None:
    good(shell("sample", "--digits", "0-9", "-n", 7, "-s", 3, "--steps", 2, "-o", "many.npz"))
    expected = bundled.sample(range(10), 7, seed=3, steps=2, output_type="np")
    with np.load(tmp_path / "many.npz") as arrays:
        assert (arrays["images"] == expected.images).all() and (arrays["labels"] == expected.labels).all()
        assert arrays["seed"] == 3 and arrays["images"].dtype == np.uint8


def test_arrays_of_any_number_are_written_in_little_memory(tmp_path: Path) -> None:
    def batches() -> Iterator[Samples]:
        for _ in range(1000):
            yield Samples(np.zeros((64, 1, 28, 28), np.uint8), np.zeros(64, np.int64), 0, 1.0)

    tracemalloc.start()
    with (tmp_path / "x.npz").open("wb") as file:
        terminal.write_npz(file, batches(), (64_000, 1, 28, 28))
    assert tracemalloc.get_traced_memory()[1] < 5e6  # the images alone are 50 MB
    tracemalloc.stop()
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["images"].shape == (64_000, 1, 28, 28)


def test_every_command_on_a_scan(shell: Shell, tmp_path: Path) -> None:
    seven("RGB", "white", "navy").save("scan.png")
    transfer = good(shell("transfer", "scan.png", "--to", "8-9", "--steps", 3, "--json"))
    assert json.loads(transfer.out) == {"file": "transfer.png", "to": [8, 9]}
    assert transfer.err.startswith("scan.png: 300×400, dark on light, inverted, ")
    assert Image.open("transfer.png").size == ((3 * 29 - 1) * 4, 28 * 4)
    (row,) = json.loads(good(shell("logprob", "scan.png", "--steps", 3, "--json")).out)
    assert set(row) == {"file", "nats", "standard_error", "bits_per_dim"}
    assert good(shell("logprob", "scan.png", "--steps", 3, "-q")).out.startswith(f"scan.png: {row['nats']} ± ")
    psnr = json.loads(good(shell("reconstruct", "scan.png", "--json")).out)["psnr"]["scan.png"]
    assert psnr > 25
    for words in (("3", "8", "-s", 1), ("scan.png", "8", "-s", 1)):
        good(shell("interpolate", *words, "-n", 4, "--steps", 2, "--force"))
        assert Image.open("interpolate.png").size == ((4 * 29 - 1) * 4, 28 * 4)


def test_animations(shell: Shell) -> None:
    good(shell("path", 7, 1, "-s", 1, "--steps", 4))
    with Image.open("path.gif") as image:
        assert (image.n_frames, image.size) == (5, (57 * 8, 28 * 8))  # type: ignore[attr-defined]
    good(shell("path", 7, "-s", 1, "--steps", 9, "-o", "path.png"))
    assert Image.open("path.png").size == ((10 * 29 - 1) * 4, 28 * 4)
    good(shell("interpolate", 3, 8, "-n", 3, "--steps", 2, "-o", "x.gif"))
    assert Image.open("x.gif").n_frames == 4  # type: ignore[attr-defined]  # there and back


def test_info_and_digest(shell: Shell, tmp_path: Path) -> None:
    facts = json.loads(good(shell("info", "--json")).out)
    assert facts["classes"] == 10 and facts["images"] == [1, 28, 28] and facts["sampler"]["solver"] == "midpoint"
    assert "images      1 × 28 × 28\n" in good(shell("info", BUNDLED)).out
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        seven("L", 255, 0).save(tmp_path / "photos" / name)
    found = good(shell("digest", "photos"))
    value = folder_digest(tmp_path / "photos")[0]
    assert found == (0, f"data.digest: {value}\n", "photos: 3 images of 2 classes\n")
    coder = json.loads(good(shell("digest", BUNDLED / "autoencoder", "--json")).out)
    assert coder == {"autoencoder.revision": json.loads((BUNDLED / "flow.json").read_text())["autoencoder_sha256"]}


def test_a_failed_write_leaves_nothing(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, *_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lfm.cli.write_png", full)
    assert shell("sample", 3, "--steps", 1).err == (
        "lfm: sample.png: can't be written (No space left on device); write elsewhere\n"
    )
    assert not list(tmp_path.iterdir())


# --- processes -------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from lfm import terminal, cli; terminal.run(cli.commands, ['--help']); "
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'PIL', 'rich', 'diffusers', 'scipy'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=HERE, capture_output=True, text=True)
    assert result.stdout.endswith("\n[]\n"), result


def test_standard_output_takes_a_picture(tmp_path: Path) -> None:
    words = [*PYTHON, "sample", "3", "-s", "0", "--steps", "1", "-o", "-"]
    drawn = subprocess.run(words, cwd=tmp_path, env=HERE, capture_output=True)
    assert drawn.returncode == 0 and drawn.stderr == b"standard output: 1 picture, seed 0, 1 evaluation each\n"
    (tmp_path / "a.png").write_bytes(drawn.stdout)
    assert Image.open(tmp_path / "a.png").size == (112, 112)


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([*PYTHON, "--help"], cwd=tmp_path, env=HERE, stdout=pipe, stderr=pipe) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    words = [*PYTHON, "sample", "3", "-n", "1000000", "-o", "many.npz"]
    with subprocess.Popen(words, cwd=tmp_path, env=HERE, stderr=subprocess.PIPE, preexec_fn=heed_signals) as process:
        while not list(tmp_path.iterdir()) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr and process.stderr.read().strip() == b"" and process.wait() == 130
    assert not list(tmp_path.iterdir())

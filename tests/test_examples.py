"""examples/ as a reader runs them, with fewer steps."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import ROOT, command
from tools.notebook import NOTEBOOK, SOURCE, notebook


def test_the_minimal_example_writes_a_grid_of_digits(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for split, n in {"train": 300, "t10k": 10}.items():  # unpacked, as torchvision leaves them
        for name, shape in {"images-idx3": (n, 28, 28), "labels-idx1": (n,)}.items():
            header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
            values = draws.integers(0, 256 if len(shape) > 1 else 10, shape, np.uint8)
            (raw / f"{split}-{name}-ubyte").write_bytes(header + values.tobytes())
    words = ["--data", str(tmp_path), "--steps", "2", "--output", "grid.png"]
    result = command("python", str(ROOT / "examples/minimal.py"), *words, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("wrote grid.png\n") and "loss" in result.stdout
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (560, 560) and np.asarray(picture).any()


def texts(cell: dict[str, Any]) -> list[str]:
    """What a cell has shown as text, numbers aside: their last digits depend on the machine."""
    return [re.sub(r"[\d.]+", "0", "".join(o.get("text") or o["data"]["text/plain"])) for o in cell.get("outputs", [])]


def pictures(cell: dict[str, Any]) -> list[np.ndarray]:
    data = [o["data"]["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))), np.float32) for png in data]


def test_the_tour_shows_what_its_script_gives() -> None:
    stored = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))
    made = notebook((ROOT / SOURCE).read_text(encoding="utf-8"))
    assert [c["source"] for c in stored["cells"]] == [c["source"] for c in made["cells"]], "python -m tools.notebook"
    for old, new in zip(stored["cells"], made["cells"], strict=True):
        assert texts(old) == texts(new)
        for a, b in zip(pictures(old), pictures(new), strict=True):
            assert a.shape == b.shape and np.abs(a - b).mean() < 2, "grey levels, as other machines may round"
    assert sum(len(pictures(cell)) for cell in made["cells"]) == 6
    assert (ROOT / NOTEBOOK).stat().st_size < 300e3

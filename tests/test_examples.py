"""examples/ as a reader runs them, with fewer steps."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import ROOT, command


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

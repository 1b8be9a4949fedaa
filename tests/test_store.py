"""The latents' file: encoded in parts by any number of processes, and read in the same order from memory or streamed."""

import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from lfm.nets.latents import LatentScale
from pipeline.artifacts import hdf5
from pipeline.artifacts.hdf5 import Format
from pipeline.artifacts.latents import Latents, Streamed, opened
from pipeline.training import order
from tests.conftest import command
from tools.workspace import outs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of four blocks of 16 rows."""
    for name, rows in {"BLOCK": 16, "WINDOW": 64}.items():
        monkeypatch.setattr(order, name, rows)
    for cached in (order._layout, order._window):
        monkeypatch.setattr(order, cached.__name__, lru_cache(maxsize=2)(cached.__wrapped__))


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (7, 16), (64, 5), (65, 7), (150, 64), (150, 400)])
def test_batches_pass_over_every_row_once_an_epoch(small: None, n: int, batch: int) -> None:
    rows = torch.cat([order.batch_rows(0, step, batch, n) for step in range(-(-3 * n // batch))])
    epochs = rows[: len(rows) // n * n].reshape(-1, n)
    assert len(epochs) >= 3
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs), "shuffled anew"


def test_windows_are_whole_blocks_whose_rows_mix(small: None) -> None:
    blocks = [window // 16 for window in order.batch_rows(0, 0, 160, 160).split(64)]
    assert sorted(b for window in blocks for b in set(window.tolist())) == list(range(10))
    for window in blocks[:2]:
        # In the file's order the block changes 3 times; shuffled, 3/4 of 63 neighbours differ, ± 4 · 3.5.
        assert (window[1:] != window[:-1]).sum() > 63 * 48 / 63 - 14


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """A file of 150 latents."""
    draws = np.random.default_rng(0)
    with hdf5.writing(tmp_path / "latents.h5") as file:
        for name in ("mean", "std"):
            file.create(f"train/{name}", (150, 2, 3, 3), np.float32, 16)
            file.put(f"train/{name}", 0, draws.random((150, 2, 3, 3), np.float32))
        file.add("train/labels", np.arange(150, dtype=np.uint8))
        file.attributes(format="test/1")
    return tmp_path / "latents.h5"


def test_batches_from_memory_and_streamed_are_the_same_bits(latents: Path, small: None) -> None:
    scale = LatentScale(torch.tensor([0.3, 0.4]), torch.tensor([0.7, 1.3]))
    with hdf5.reading(latents, Format("test/1", {}, {})) as file:
        whole, streamed = (opened(file, "train", scale, torch.device("cpu"), mb) for mb in (1, 0))
        assert isinstance(whole, Latents) and isinstance(streamed, Streamed)
        assert whole.shape == streamed.shape == (2, 3, 3) and len(whole) == len(streamed) == 150
        for step in (
            *range(12),
            3,
            40,
        ):  # from window to window, into new epochs, back, and far ahead, as a resumed one
            a, b = whole.batch(5, step, 40), streamed.batch(5, step, 40)
            assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std) and torch.equal(a.labels, b.labels)
            assert torch.equal(a.labels, order.batch_rows(5, step, 40, 150))
            assert len(streamed._latents or ()) <= 64, "one window, no more"
        rows = file.read("train/mean")[a.labels]
        assert torch.equal(scale.restore(a.mean).round(decimals=4), torch.from_numpy(rows).round(decimals=4))


# --- processes ---------------------------------------------------------------------------------------------------------


def test_two_processes_encode_and_a_streaming_training_learns_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns("cache", "tmp"))
    before = outs(copy)
    result = command("python", "-m", "stages.encode", cwd=copy, LFM_PROCESSES="2")
    assert result.returncode == 0, result.stderr
    assert "encode, 1 of 2" in result.stderr
    parts = [*(copy / ".dvc/tmp/lfm/encode").rglob("*.safetensors")]
    assert len(parts) == 4, "of 4,000 images at most: two of the training split, one of each other"
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text.replace("latents_mb: 4000", "latents_mb: 0"))
    result = command("python", "-m", "stages.train", cwd=copy)
    assert result.returncode == 0 and ", streamed\n" in result.stderr
    assert outs(copy) == before

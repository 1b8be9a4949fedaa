"""Random input to every reader: it is read correctly or refused with `UserError`, and nothing else happens."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.artifacts import hdf5
from pipeline.artifacts.hdf5 import Format
from pipeline.errors import UserError
from pipeline.params import load_params, load_yaml, validate_params
from pipeline.sources import idx
from tests.conftest import ROOT

settings.register_profile("lfm", derandomize=True, database=None, deadline=None, max_examples=150,
                          suppress_health_check=list(HealthCheck))  # fmt: skip
settings.load_profile("lfm")

PARAMS = (ROOT / "params.yaml").read_text()
TREE = load_yaml(PARAMS)
LEAVES = [(section, key) for section, leaves in TREE.items() for key in leaves]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=8,
)


@contextmanager
def right_or_refused(names: str = "", right: bool = True) -> Iterator[None]:
    try:
        yield
        assert right
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000 and names in str(error)


@given(st.sampled_from(LEAVES), VALUES)
def test_params_near_valid_ones(place: tuple[str, str], value: Any) -> None:
    tree = {section: dict(leaves) for section, leaves in TREE.items()}
    tree[place[0]][place[1]] = value
    with right_or_refused():
        validate_params(tree, "params.yaml")


@given(VALUES)
def test_params_of_any_kind(tree: Any) -> None:
    with right_or_refused(right=False):
        validate_params(tree, "params.yaml")


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda s: s.encode()), st.integers(0, len(PARAMS)))
def test_text_thrown_into_params_yaml(tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(PARAMS.encode()[:at] + junk + PARAMS.encode()[at:])
    with right_or_refused():
        load_params(path)


@pytest.mark.parametrize(
    "text",
    ["!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "!!python/object/apply:os.system [ls]", "[" * 10_000,
     "a: &a [*a]", "? [1]\n: 2", "\ufeffdata: 1", "a: 0x" + "f" * 9000, "1: 2", "data: 3", '"a\\nb": 1'],
)  # fmt: skip
def test_odd_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with right_or_refused(right=False):
        load_params(path)


def read_idx(packed: bytes) -> np.ndarray:
    return idx.parse("a.gz", idx.unpack("a.gz", packed))


IDX = b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef"


@given(st.binary(max_size=200))
def test_bytes_as_idx(packed: bytes) -> None:
    with right_or_refused("a.gz", right=False):
        read_idx(packed)


@given(st.integers(0, 255), st.lists(st.integers(0, 2**32 - 1), max_size=260), st.binary(max_size=40))
def test_headers_that_lie(rank: int, sizes: list[int], values: bytes) -> None:
    header = bytes([0, 0, 8, rank]) + np.array(sizes, ">u4").tobytes()
    with right_or_refused():
        assert read_idx(gzip.compress(header + values, 1)).nbytes <= len(header + values)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_of_idx(at: int, flip: int) -> None:
    packed = bytearray(gzip.compress(IDX, mtime=0))
    packed[at % len(packed)] ^= flip
    with right_or_refused():
        assert read_idx(bytes(packed)).tobytes() == b"abcdef"


def test_a_gzip_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"a\.gz: .* 1,000 bytes"):
        read_idx(gzip.compress(bytes(10**7)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "x.h5"
    with hdf5.writing(path) as file:
        file.add("train/mean", np.arange(64, dtype=np.float32).reshape(8, 8))
        file.add("train/labels", np.arange(8, dtype=np.uint8))
        file.attributes(format="test/1", classes=8)
    return path, path.read_bytes()


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 255)), min_size=1, max_size=4), st.integers(0, 10**9))
def test_changed_bytes_of_hdf5(store: tuple[Path, bytes], flips: list[tuple[int, int]], cut: int) -> None:
    """Outside the heap of strings, in which the HDF5 library itself may search for ever: docs/robustness.md says so."""
    path, whole = store
    heap = whole.index(b"GCOL")
    inside = range(heap, heap + int.from_bytes(whole[heap + 8 : heap + 16], "little"))
    content = bytearray(whole if cut % 4 else whole[: cut % len(whole)])
    assume(not content or not any(at % len(content) in inside for at, _ in flips))
    for at, flip in flips:
        if content:
            content[at % len(content)] ^= flip
    path.write_bytes(content)
    with right_or_refused("x.h5"), hdf5.reading(path, Format("test/1", {}, {})) as file:
        for name in ("train/mean", "train/labels"):
            assert file.read(name).nbytes <= len(content)

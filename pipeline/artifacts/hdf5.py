"""HDF5 files: named arrays and attributes, the same bytes for the same writes, checked against their format when read.

Layout: every array is one chunked dataset (about 1 MiB a chunk along the first axis) with a Fletcher-32 checksum, so
that a flipped bit is an error and not a wrong figure; names may hold "/" for groups; the root's attributes are plain
scalars or strings and say what the file is (`format`) and where it came from. No times, no pickled objects.
"""

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import h5py
import numpy as np

from pipeline.errors import UserError

CHUNK_BYTES = 1 << 20

SPLITS = ("train", "validation", "test")

Attribute = str | int | float


class Format(NamedTuple):
    """A kind of file: what its attribute `format` says, and what it must hold. Each artifact's module has its own."""

    name: str
    arrays: Mapping[str, str]  # of each: its dtype, then its axes; an axis is as long wherever its name stands
    attributes: Mapping[str, type]
    optional: Mapping[str, type] = MappingProxyType({})  # attributes that it may hold


def of_splits(**arrays: str) -> dict[str, str]:
    """The same arrays for each split, whose own name stands for its axis of rows."""
    return {f"{split}/{name}": value.replace("rows", split) for split in SPLITS for name, value in arrays.items()}


class _Target:
    """The file that HDF5 writes to. It hears of no error: the library (2.x) crashes where one comes while it closes a file.
    What can't be written is kept in memory, in case HDF5 reads it again, and `check` raises the error."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self._place, self._end = file, 0, 0
        self._error: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raises the first error, with the name of the file."""
        if self._error:
            raise OSError(self._error.errno, self._error.strerror, os.fspath(self._file.name)) from self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + (self._end if whence == os.SEEK_END else 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def write(self, data: memoryview) -> int:
        try:
            self.check()
            self._file.seek(self._place)
            done = 0
            while done < len(data):
                done += self._file.write(data[done:]) or 0
        except OSError as error:
            self._error = error
            self._unwritten.append((self._place, bytes(data)))
        self._end = max(self._end, self._place + len(data))
        return len(data)

    def readinto(self, data: memoryview) -> int:
        self._file.seek(self._place)
        self._file.readinto(data)
        for start, content in self._unwritten:
            first, last = max(start, self._place), min(start + len(content), self._place + len(data))
            if first < last:
                data[first - self._place : last - self._place] = content[first - start : last - start]
        return len(data)

    read = readinto  # h5py asks for it, and calls `readinto`

    def truncate(self, size: int) -> None:
        self._end = size
        try:
            self.check()
            self._file.truncate(size)
        except OSError as error:
            self._error = error

    def flush(self) -> None:
        """Nothing is buffered."""


class ArrayWriter:
    """Writes one HDF5 file in pieces; use it through `writing`. Raises `OSError` where the disk does."""

    def __init__(self, file: h5py.File, target: _Target) -> None:
        self._file, self._target = file, target

    def create(self, name: str, shape: Iterable[int], dtype: np.typing.DTypeLike, rows: int | None = None) -> None:
        """Make room for an array; its rows are filled by `put`. A chunk is so many `rows`, by default about 1 MiB of them."""
        shape, dtype = tuple(shape), np.dtype(dtype)
        row = max(1, int(np.prod(shape[1:])) * dtype.itemsize)
        chunks = (max(1, min(shape[0], rows or CHUNK_BYTES // row)), *shape[1:])
        self._file.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True, track_times=False)

    def put(self, name: str, start: int, rows: np.ndarray) -> None:
        """Fill rows start … start + len(rows) of an array made by `create`."""
        self._file[name][start : start + len(rows)] = rows
        self._target.check()

    def add(self, name: str, array: np.ndarray) -> None:
        """Write a whole array at once."""
        self.create(name, array.shape, array.dtype)
        self.put(name, 0, array)

    def attributes(self, **values: Attribute) -> None:
        """Set attributes of the file, in the order of their names."""
        for name, value in sorted(values.items()):
            self._file.attrs[name] = value


@contextmanager
def writing(path: Path) -> Iterator[ArrayWriter]:
    """Open `path` for writing."""
    with io.FileIO(path, "w+") as file:
        target = _Target(file)
        with h5py.File(target, "w") as opened:
            yield ArrayWriter(opened, target)
        target.check()


class ArrayFile:
    """An HDF5 file open for reading; use it through `reading`. Every failure is one line that names file and array."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path, self._file = path, file
        self.attributes: dict[str, Attribute] = {}
        for name in file.attrs:
            value = file.attrs[name] if file.attrs.get_id(name).shape == () else None
            value = value.item() if isinstance(value, np.generic) else value
            if not isinstance(value, Attribute):
                raise self._wrong(f"attribute '{name}' is no single number or string")
            self.attributes[name] = value

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{self._path}: {what}; {_remake(self._path)}")

    def _dataset(self, name: str) -> h5py.Dataset:
        node: object = self._file
        for part in name.split("/"):
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            elsewhere = isinstance(link, h5py.ExternalLink | h5py.SoftLink)
            node = None if link is None or elsewhere else node[part]  # type: ignore[index]
            if elsewhere or (isinstance(node, h5py.Dataset) and (node.is_virtual or node.external)):
                raise self._wrong(f"array '{name}' points to another file, which is refused")
        if not isinstance(node, h5py.Dataset):
            names: list[str] = []
            self._file.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
            raise self._wrong(f"no array '{name}' (it holds: {', '.join(names) or 'nothing'})")
        # Nothing is compressed, so no array and no chunk is larger than the file: no header can ask for all memory.
        dataset = node
        filters, most = dataset.id.get_create_plist().get_nfilters(), self._path.stat().st_size
        large = max(math.prod(dataset.shape), math.prod(dataset.chunks or ())) * dataset.dtype.itemsize > most
        large |= (
            dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize
        )  # a chunk that is lost reads as zeros
        if dataset.dtype.kind not in "biuf" or not dataset.fletcher32 or filters != 1 or large:
            raise self._wrong(f"array '{name}' says it is {dataset.dtype} {dataset.shape}, which this file can't hold")
        return dataset

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, without reading it."""
        with _as_user_error(self._path, f"array '{name}' is damaged"):
            return tuple(self._dataset(name).shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start … stop of an array (all of them by default)."""
        with _as_user_error(self._path, f"array '{name}' is damaged"):
            values = np.asarray(self._dataset(name)[start:stop])
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise self._wrong(f"array '{name}' holds values that are not finite")
        return values

    def attribute(self, name: str) -> Attribute:
        """One attribute of the file."""
        if name not in self.attributes:
            raise self._wrong(f"no attribute '{name}'")
        return self.attributes[name]

    def check(self, layout: Format) -> None:
        """Raises `UserError` where an array, an attribute or a label is missing or none that the format allows."""
        optional = {name: kind for name, kind in layout.optional.items() if name in self.attributes}
        for name, kind in {**layout.attributes, **optional}.items():
            if not isinstance(value := self.attribute(name), kind):
                raise self._wrong(f"attribute '{name}' is {value!r}, which is no {kind.__name__}")
        lengths: dict[str, int] = {}
        for name, wanted in layout.arrays.items():
            with _as_user_error(self._path, f"array '{name}' is damaged"):
                dataset = self._dataset(name)
                dtype, *axes = wanted.split()
                fits = dataset.dtype == np.dtype(dtype) and dataset.ndim == len(axes) and 0 not in dataset.shape
                if not fits or any(lengths.setdefault(a, n) != n for a, n in zip(axes, dataset.shape, strict=True)):
                    known = ", ".join(f"{a} = {lengths[a]}" if a in lengths else a for a in axes)
                    raise self._wrong(f"array '{name}' is {dataset.dtype} {dataset.shape}, not {dtype} ({known})")
            if name.endswith("/labels") and "classes" in self.attributes:
                top, classes = int(self.read(name).max()), self.attribute("classes")
                if not isinstance(classes, int) or top >= classes:
                    raise self._wrong(f"array '{name}' holds label {top}, but there are {classes} classes")


@contextmanager
def reading(path: Path, kind: Format) -> Iterator[ArrayFile]:
    """Open an HDF5 file that `writing` made, which says that it is of this format and holds what that must."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `dvc repro` to make it")
    with _as_user_error(path, "not a whole HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        with _as_user_error(path, "its attributes are damaged"):
            opened = ArrayFile(path, file)
        if opened.attribute("format") != kind.name:
            raise UserError(f"{path}: its format is '{opened.attribute('format')}', not '{kind.name}'; {_remake(path)}")
        opened.check(kind)
        yield opened


@contextmanager
def _as_user_error(path: Path, what: str) -> Iterator[None]:
    """Whatever h5py and HDF5 raise for a damaged file, from KeyError to MemoryError, as one `UserError`; what the system
    refused, which has an errno, as that `OSError` with the file's name."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise UserError(f"{path}: {what} ({' '.join(str(error).split())}); {_remake(path)}") from error


def _remake(path: Path) -> str:
    return f"delete {path} and run `dvc repro` to make or restore it"

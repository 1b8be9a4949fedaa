"""The one HDF5 format: named arrays and attributes, the same bytes for the same writes, moved into place when whole.

Layout: every array is one chunked dataset (about 1 MiB a chunk along the first axis) with a Fletcher-32 checksum, so
that a flipped bit is an error and not a wrong figure; names may hold "/" for groups; the root's attributes are plain
scalars or strings and say what the file is (`format`) and where it came from. No times, no pickled objects.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import UserError
from pipeline.files import replacing

CHUNK_BYTES = 1 << 20

Attribute = str | int | float


class ArrayWriter:
    """Writes one HDF5 file in pieces; use it through `writing`."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def create(self, name: str, shape: Iterable[int], dtype: np.typing.DTypeLike, rows: int | None = None) -> None:
        """Make room for an array; its rows are filled by `put`. A chunk is so many `rows`, by default about 1 MiB of them."""
        shape, dtype = tuple(shape), np.dtype(dtype)
        row = max(1, int(np.prod(shape[1:])) * dtype.itemsize)
        chunks = (max(1, min(shape[0], rows or CHUNK_BYTES // row)), *shape[1:])
        self._file.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True, track_times=False)

    def put(self, name: str, start: int, rows: np.ndarray) -> None:
        """Fill rows start … start + len(rows) of an array made by `create`."""
        self._file[name][start : start + len(rows)] = rows

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
    """Open `path` for writing; the file appears under its name when the block ends well, and not at all otherwise."""
    with replacing(path) as part, h5py.File(part, "w") as file:
        yield ArrayWriter(file)


class ArrayFile:
    """An HDF5 file open for reading; use it through `reading`. Every failure is one line that names file and array."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path, self._file = path, file
        self.attributes: dict[str, Attribute] = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()
        }

    def _dataset(self, name: str) -> h5py.Dataset:
        found: object = self._file
        for part in name.split("/"):
            link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
            elsewhere = isinstance(link, h5py.ExternalLink | h5py.SoftLink)
            found = None if link is None or elsewhere else found[part]  # type: ignore[index]
            if elsewhere or (isinstance(found, h5py.Dataset) and (found.is_virtual or found.external)):
                raise UserError(
                    f"{self._path}: array '{name}' points to another file, which is refused; {_remake(self._path)}"
                )
        if not isinstance(found, h5py.Dataset):
            names: list[str] = []
            self._file.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
            raise UserError(
                f"{self._path}: no array '{name}' (it holds: {', '.join(names) or 'nothing'}); {_remake(self._path)}"
            )
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, without reading it."""
        return tuple(self._dataset(name).shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start … stop of an array (all of them by default)."""
        dataset = self._dataset(name)
        try:
            return np.asarray(dataset[start:stop])
        except OSError as error:
            raise UserError(f"{self._path}: array '{name}' is damaged ({error}); {_remake(self._path)}") from error

    def attribute(self, name: str) -> Attribute:
        """One attribute of the file."""
        if name not in self.attributes:
            raise UserError(f"{self._path}: no attribute '{name}'; {_remake(self._path)}")
        return self.attributes[name]


@contextmanager
def reading(path: Path, kind: str) -> Iterator[ArrayFile]:
    """Open an HDF5 file that `writing` made and whose attribute `format` is `kind`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `dvc repro` to make it")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not a whole HDF5 file ({error}); {_remake(path)}") from error
    with file:
        opened = ArrayFile(path, file)
        if opened.attribute("format") != kind:
            raise UserError(f"{path}: its format is '{opened.attribute('format')}', not '{kind}'; {_remake(path)}")
        yield opened


def _remake(path: Path) -> str:
    return f"delete {path} and run `dvc repro` to make or restore it"

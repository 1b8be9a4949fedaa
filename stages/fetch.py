"""The data set, split and checked → data/images.h5."""

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from lfm import random
from pipeline.artifacts import hdf5, images
from pipeline.errors import UserError
from pipeline.params import DataParams, format_value
from pipeline.progress import Progress, say
from pipeline.run import Context, run
from pipeline.sources import download
from pipeline.sources.folder import TOGETHER, Pictures, survey

Images = TypeVar("Images", np.ndarray, Pictures)


class Split(NamedTuple, Generic[Images]):
    images: Images  # (N, C, H, W) uint8, or decoded when they are asked for
    labels: np.ndarray  # (N,) uint8


class Data(NamedTuple):
    train: Split  # validation images included
    test: Split
    names: Sequence[str] = ()  # of the classes, where they are more than their numbers
    broken: int = 0  # images left out


MOST = 1 << 28  # bytes that a file may unpack to; MNIST's largest has 47 million
PARTS = 7  # of a folder's images, one is for test and one for validation, as in MNIST


def read_idx(name: str, packed: bytes) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes (LeCun's format): magic 0, 0, 8, rank, then big-endian sizes."""
    try:
        data = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: not a gzip file ({error}); fetch it again") from error
    if len(data) > MOST:
        raise UserError(f"{name}: unpacks to more than {MOST:,} bytes; fetch it again")
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{name}: starts with {data[:4].hex(' ')}, not with the IDX magic 00 00 08; fetch it again")
    shape = np.frombuffer(data, ">u4", data[3], offset=4) if len(data) >= 4 + 4 * data[3] else np.zeros(0)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
    if len(shape) != data[3] or values.size != math.prod(shape.tolist()):
        raise UserError(f"{name}: holds {values.size:,} values, its header says {shape.tolist()}; fetch it again")
    return values.reshape(shape.astype(np.int64))


def idx(dataset: str, kind: Any, show: bool) -> tuple[Split[np.ndarray], Split[np.ndarray]]:
    """A data set in MNIST's four files: 60,000 training and 10,000 test images, 28×28.

    Args:
        kind: torchvision's class, which knows addresses and md5 sums.
    """
    files = [read_idx(n, download.fetch(dataset, n, md5, kind.mirrors, show)) for n, md5 in kind.resources]
    train_images, train_labels, test_images, test_labels = files
    return Split(train_images[:, None], train_labels), Split(test_images[:, None], test_labels)


def mnist(show: bool) -> tuple[Split[np.ndarray], Split[np.ndarray]]:
    """MNIST, from torchvision's addresses."""
    from torchvision.datasets import MNIST

    return idx("mnist", MNIST, show)


def fashion_mnist(show: bool) -> Data:
    """Fashion-MNIST (Xiao et al. 2017): ten kinds of clothes."""
    from torchvision.datasets import FashionMNIST

    return Data(*idx("fashion_mnist", FashionMNIST, show), FashionMNIST.classes)


def kmnist(show: bool) -> Data:
    """Kuzushiji-MNIST (Clanuwat et al. 2018): ten characters of old Japanese handwriting."""
    from torchvision.datasets import KMNIST

    return Data(*idx("kmnist", KMNIST, show), KMNIST.classes)


def digits(show: bool) -> tuple[Split[np.ndarray], Split[np.ndarray]]:
    """scikit-learn's 1,797 digits of 8×8 (values 0–16), enlarged to 28×28: 1,497 for training, the last 300 for test."""
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    grey = (small.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(g).resize((28, 28), Image.Resampling.BICUBIC)) for g in grey])
    images, labels = large[:, None], labels.astype(np.uint8)
    return Split(images[:-300], labels[:-300]), Split(images[-300:], labels[-300:])


def shuffled(rows: tuple[Pictures, np.ndarray], name: str, seed: int) -> Split[Pictures]:
    """In an order in which any part of them is of all classes."""
    order = random.permutation(seed, f"order/{name}", 0, len(rows[1])).numpy()
    return Split(rows[0][order], rows[1][order])


def folder(p: DataParams, show: bool) -> Data:
    """A folder of the user's, its rows shuffled. Where it has no test split of its own, a seventh of each class is drawn for
    it, as in MNIST."""
    assert p.root is not None  # `DataParams` sees to it
    found = survey(p.root, p.digest, p.image_size, p.skip_broken, show)
    if "test" in found.splits:
        train, test = (shuffled(found.splits[name], name, p.seed) for name in ("train", "test"))
    else:
        whole = shuffled(found.splits[""], "all", p.seed)
        counts = np.bincount(whole.labels, minlength=len(found.classes)) // PARTS
        train, test = hold_out(whole, np.repeat(np.arange(len(counts)), counts), p.seed, "test split")
    for label, name in enumerate(found.classes):
        rest, tested = (int((split.labels == label).sum()) for split in (train, test))
        if tested < 2 or rest <= tested:
            raise UserError(
                f"data.root: class {format_value(name)} has {rest:,} images for training and {tested:,} for test; there must be 2 "
                f"for test and more for training, of which as many are for validation: {2 * PARTS} where a seventh is drawn"
            )
    return Data(train, test, found.classes, found.broken)


DATASETS: dict[str, Callable[[DataParams, bool], Data]] = {
    "mnist": lambda p, show: Data(*mnist(show)),
    "fashion_mnist": lambda p, show: fashion_mnist(show),
    "kmnist": lambda p, show: kmnist(show),
    "digits": lambda p, show: Data(*digits(show)),
    "folder": folder,
}


def hold_out(
    train: Split[Images], counted: np.ndarray, seed: int, stream: str = "validation split"
) -> tuple[Split[Images], Split[Images]]:
    """Draw a split from the training images, with exactly the class counts of the labels `counted`. Returns what stays, and
    what was drawn."""
    chosen = np.zeros(len(train.labels), dtype=bool)
    order = random.permutation(seed, stream, 0, len(train.labels)).numpy()
    for label, count in enumerate(np.bincount(counted)):
        chosen[order[train.labels[order] == label][:count]] = True
    return Split(train.images[~chosen], train.labels[~chosen]), Split(train.images[chosen], train.labels[chosen])


def digest(split: Split) -> str:
    """sha256 of a split: what weights were fitted on, and what a figure was measured on."""
    return hashlib.sha256(np.asarray(split.images).tobytes() + split.labels.tobytes()).hexdigest()


def write(file: hdf5.ArrayWriter, name: str, split: Split, progress: Progress) -> str:
    """One split into the file, a few images at a time. Returns its `digest`."""
    total = hashlib.sha256()
    file.create(f"{name}/images", split.images.shape, np.uint8)
    for start in range(0, len(split.labels), TOGETHER):
        images = np.asarray(split.images[start : start + TOGETHER])
        file.put(f"{name}/images", start, images)
        total.update(images.tobytes())
        progress.advance(len(images))
    file.add(f"{name}/labels", split.labels)
    total.update(split.labels.tobytes())
    return total.hexdigest()


def main(context: Context) -> None:
    p = context.params.data
    data = DATASETS[p.dataset](p, context.params.runtime.progress)
    train, validation = hold_out(data.train, data.test.labels, p.seed)
    splits = {"train": train, "validation": validation, "test": data.test}
    total = sum(len(s.labels) for s in splits.values())
    with context.publish("images") as part, hdf5.writing(part) as file:
        with context.progress(total, "write", "image") as progress:
            sha256 = {name: write(file, name, split, progress) for name, split in splits.items()}
        file.attributes(
            format=images.FORMAT.name,
            dataset=p.dataset,
            classes=len(data.names) or int(train.labels.max()) + 1,
            train_sha256=sha256["train"],
            test_sha256=sha256["test"],
            **({"class_names": "\n".join(data.names)} if data.names else {}),
            **({"broken": data.broken} if data.broken else {}),
        )
    sizes = " / ".join(f"{len(s.labels):,}" for s in splits.values())
    say(f"{context.output('images')}: {p.dataset}, {sizes} images")


if __name__ == "__main__":
    run(main)

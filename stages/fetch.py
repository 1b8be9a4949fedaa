"""The data set, split and checked → data/images.h5."""

import gzip
import hashlib
import io
import math
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline import arrays, download, random
from pipeline.errors import UserError
from pipeline.files import IMAGES, IMAGES_FORMAT
from pipeline.params import Params
from pipeline.report import say
from stages.cli import run


class Split(NamedTuple):
    images: np.ndarray  # (N, C, H, W) uint8
    labels: np.ndarray  # (N,) uint8


MOST = 1 << 28  # bytes that a file may unpack to; MNIST's largest has 47 million


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


def mnist(show: bool) -> tuple[Split, Split]:
    """MNIST's 60,000 training and 10,000 test images, from torchvision's addresses and md5 sums."""
    from torchvision.datasets import MNIST

    files = [read_idx(n, download.fetch("mnist", n, md5, MNIST.mirrors, show)) for n, md5 in MNIST.resources]
    train_images, train_labels, test_images, test_labels = files
    return Split(train_images[:, None], train_labels), Split(test_images[:, None], test_labels)


def digits(show: bool) -> tuple[Split, Split]:
    """scikit-learn's 1,797 digits of 8×8 (values 0–16), enlarged to 28×28: 1,497 for training, the last 300 for test."""
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    grey = (small.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(g).resize((28, 28), Image.Resampling.BICUBIC)) for g in grey])
    images, labels = large[:, None], labels.astype(np.uint8)
    return Split(images[:-300], labels[:-300]), Split(images[-300:], labels[-300:])


DATASETS = {"mnist": mnist, "digits": digits}


def hold_out(train: Split, test_labels: np.ndarray, seed: int) -> tuple[Split, Split]:
    """Draw the validation split from the training images, with exactly the test set's class counts; the rest stays."""
    chosen = np.zeros(len(train.labels), dtype=bool)
    order = random.permutation(seed, "validation split", 0, len(train.labels)).numpy()
    for label, count in enumerate(np.bincount(test_labels)):
        chosen[order[train.labels[order] == label][:count]] = True
    return Split(train.images[~chosen], train.labels[~chosen]), Split(train.images[chosen], train.labels[chosen])


def digest(split: Split) -> str:
    """sha256 of a split: what weights were fitted on, and what a figure was measured on."""
    return hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()


def main(p: Params) -> None:
    full, test = DATASETS[p.data.dataset](p.runtime.progress)
    train, validation = hold_out(full, test.labels, p.data.seed)
    with arrays.writing(IMAGES) as file:
        for name, split in {"train": train, "validation": validation, "test": test}.items():
            file.add(f"{name}/images", split.images)
            file.add(f"{name}/labels", split.labels)
        file.attributes(
            format=IMAGES_FORMAT,
            dataset=p.data.dataset,
            classes=int(full.labels.max()) + 1,
            train_sha256=digest(train),
            test_sha256=digest(test),
        )
    say(f"{IMAGES}: {p.data.dataset}, {len(train.labels):,} / {len(validation.labels):,} / {len(test.labels):,} images")


if __name__ == "__main__":
    run(main, "data")

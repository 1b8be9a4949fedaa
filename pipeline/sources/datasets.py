"""The data sets that `data.dataset` names: an entry of `DATASETS` each."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from lfm import random, sample_data
from pipeline.errors import UserError
from pipeline.params import DataParams, format_value
from pipeline.sources import idx
from pipeline.sources.download import Published, fetch
from pipeline.sources.folder import Pictures, survey

Images = TypeVar("Images", np.ndarray, Pictures)
PARTS = 7  # of a folder's images, one is for test and one for validation, as in MNIST


class Split(NamedTuple, Generic[Images]):
    images: Images  # (N, C, H, W) uint8, or decoded when they are asked for
    labels: np.ndarray  # (N,) uint8


class Data(NamedTuple):
    train: Split  # with the validation images, unless they are given
    test: Split
    validation: Split | None = None
    part_of: str = (
        ""  # `digest` of the training split that `train` was drawn from: weights fitted on that serve here too
    )
    names: Sequence[str] = ()  # of the classes, where they are more than their numbers
    broken: int = 0  # images left out


# --- four IDX files: 60,000 training and 10,000 test images, 28×28 --------------------------------------------------------

# sha256 of the content, so that unpacked and re-packed copies are recognised.
CONTENTS = {
    "f68b3c2dcbeaaa9fbdd348bbdeb94873": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "d53e105ee54ea40749a09fcbcd1e9432": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "9fb629c4189551a2d022fa330f9573f3": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ec29112dd5afa0611ce80d1b7f02629c": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}  # by md5 of the gzip file; MNIST's


def torchvision(kind: str, named: bool = True) -> Callable[[DataParams, bool], Data]:
    """A data set that torchvision knows by the class `kind`: addresses, md5 and, unless they are digits, names of classes."""

    def load(p: DataParams, show: bool) -> Data:
        import torchvision.datasets  # slow

        known = getattr(torchvision.datasets, kind)
        files = [Published(p.dataset, kind, name, md5, CONTENTS.get(md5)) for name, md5 in known.resources]
        arrays = [idx.parse(file.name, fetch(file, known.mirrors, show)) for file in files]
        train, train_labels, test, test_labels = arrays
        return Data(
            Split(train[:, None], train_labels), Split(test[:, None], test_labels), names=known.classes if named else ()
        )

    return load


# --- the sample of MNIST that comes with the package ---------------------------------------------------------------------

# `digest` of MNIST's training split with data.seed 0, on which the bundled weights were fitted.
MNIST_TRAIN = "1a0c5ba40d61354c4bd8609b6ff4ce872bc9be0475d9405fabf05133992b5b3e"


def mnist_sample(p: DataParams, show: bool) -> Data:
    """Its three splits as they are: a validation split drawn anew would hold images that the bundled weights know."""
    train, validation, test = (Split(*split) for split in sample_data.mnist_sample().values())
    return Data(train, test, validation, MNIST_TRAIN)


# --- a folder of the user's images -----------------------------------------------------------------------------------------


def folder(p: DataParams, show: bool) -> Data:
    """Its rows shuffled. Where it has no test split, a seventh of each class is drawn for it, as in MNIST."""
    assert p.root is not None  # `DataParams` sees to it
    content = survey(p.root, p.digest, p.image_size, p.skip_broken, show)
    if "test" in content.splits:
        train, test = (shuffle(content.splits[name], name, p.seed) for name in ("train", "test"))
    else:
        everything = shuffle(content.splits[""], "all", p.seed)
        counts = np.bincount(everything.labels, minlength=len(content.classes)) // PARTS
        train, test = hold_out(everything, np.repeat(np.arange(len(counts)), counts), p.seed, "test split")
    for label, name in enumerate(content.classes):
        rest, tested = (int((split.labels == label).sum()) for split in (train, test))
        if tested < 2 or rest <= tested:
            raise UserError(
                f"data.root: class {format_value(name)} has {rest:,} images for training and {tested:,} for test; it needs at "
                f"least 2 for test, and more than that for training, as many again being for validation: {2 * PARTS} in all "
                "where a seventh is drawn"
            )
    return Data(train, test, names=content.classes, broken=content.broken)


DATASETS: dict[str, Callable[[DataParams, bool], Data]] = {
    "mnist": torchvision("MNIST", named=False),
    "fashion_mnist": torchvision("FashionMNIST"),  # Xiao et al. 2017: ten kinds of clothes
    "kmnist": torchvision("KMNIST"),  # Clanuwat et al. 2018: ten characters of old Japanese handwriting
    "mnist_sample": mnist_sample,  # 6,000 / 1,000 / 1,000 of its images, offline
    "folder": folder,
}


# --- splits --------------------------------------------------------------------------------------------------------------


def shuffle(rows: tuple[Pictures, np.ndarray], name: str, seed: int) -> Split[Pictures]:
    """In an order in which every part has images of all classes."""
    order = random.permutation(seed, f"order/{name}", 0, len(rows[1])).numpy()
    return Split(rows[0][order], rows[1][order])


def hold_out(
    train: Split[Images], like: np.ndarray, seed: int, stream: str = "validation split"
) -> tuple[Split[Images], Split[Images]]:
    """Draw a split from the training images with exactly the class counts of the labels `like`. Returns the rest, and the
    split."""
    chosen = np.zeros(len(train.labels), dtype=bool)
    order = random.permutation(seed, stream, 0, len(train.labels)).numpy()
    for label, count in enumerate(np.bincount(like)):
        chosen[order[train.labels[order] == label][:count]] = True
    return Split(train.images[~chosen], train.labels[~chosen]), Split(train.images[chosen], train.labels[chosen])


def digest(split: Split) -> str:
    """sha256 of a split: what weights were fitted on, and what a figure was measured on."""
    return hashlib.sha256(np.asarray(split.images).tobytes() + split.labels.tobytes()).hexdigest()

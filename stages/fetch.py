"""The data set, split and checked → data/images.h5."""

import hashlib

import numpy as np

from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import IMAGES, IMAGES_FORMAT
from pipeline.params import Params
from pipeline.progress import Progress, say
from pipeline.run import run
from pipeline.sources.datasets import DATASETS, Split, hold_out
from pipeline.sources.folder import BATCH


def write(file: arrays.ArrayWriter, name: str, split: Split, progress: Progress) -> str:
    """One split into the file, a few images at a time. Returns its `datasets.digest`."""
    total = hashlib.sha256()
    file.create(f"{name}/images", split.images.shape, np.uint8)
    for start in range(0, len(split.labels), BATCH):
        images = np.asarray(split.images[start : start + BATCH])
        file.put(f"{name}/images", start, images)
        total.update(images.tobytes())
        progress.advance(len(images))
    file.add(f"{name}/labels", split.labels)
    total.update(split.labels.tobytes())
    return total.hexdigest()


def main(p: Params) -> None:
    data = DATASETS[p.data.dataset](p.data, p.runtime.progress)
    train, validation = hold_out(data.train, data.test.labels, p.data.seed)
    splits = {"train": train, "validation": validation, "test": data.test}
    with arrays.writing(IMAGES) as file:
        with Progress(sum(len(s.labels) for s in splits.values()), "write", "image", p.runtime.progress) as progress:
            sha256 = {name: write(file, name, split, progress) for name, split in splits.items()}
        file.attributes(
            format=IMAGES_FORMAT,
            dataset=p.data.dataset,
            classes=len(data.names) or int(train.labels.max()) + 1,
            train_sha256=sha256["train"],
            test_sha256=sha256["test"],
            **({"class_names": "\n".join(data.names)} if data.names else {}),
            **({"broken": data.broken} if data.broken else {}),
        )
    say(f"{IMAGES}: {p.data.dataset}, " + " / ".join(f"{len(s.labels):,}" for s in splits.values()) + " images")


if __name__ == "__main__":
    run(main, "data")

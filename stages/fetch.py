"""The data set, split and checked → data/images.h5."""

import hashlib

import numpy as np

from pipeline.artifacts import hdf5, images
from pipeline.progress import Progress, say
from pipeline.run import Context, run
from pipeline.sources.datasets import DATASETS, Split, hold_out
from pipeline.sources.folder import BATCH


def write(file: hdf5.ArrayWriter, name: str, split: Split, progress: Progress) -> str:
    """One split into the file, a few images at a time. Returns its `datasets.digest`."""
    total = hashlib.sha256()
    file.create(f"{name}/images", split.images.shape, np.uint8)
    for start in range(0, len(split.labels), BATCH):
        pictures = np.asarray(split.images[start : start + BATCH])
        file.put(f"{name}/images", start, pictures)
        total.update(pictures.tobytes())
        progress.advance(len(pictures))
    file.add(f"{name}/labels", split.labels)
    total.update(split.labels.tobytes())
    return total.hexdigest()


def main(context: Context) -> None:
    p = context.params.data
    data = DATASETS[p.dataset](p, context.params.runtime.progress)
    train, validation = (
        (data.train, data.validation) if data.validation else hold_out(data.train, data.test.labels, p.seed)
    )
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
            **({"part_of_sha256": data.part_of} if data.part_of else {}),
        )
    sizes = " / ".join(f"{len(s.labels):,}" for s in splits.values())
    say(f"{context.output('images')}: {p.dataset}, {sizes} images")


if __name__ == "__main__":
    run(main)

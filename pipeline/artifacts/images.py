"""images.h5: the data set, split and checked."""

from pipeline.artifacts.hdf5 import ArrayFile, Format, of_splits

FORMAT = Format(
    "lfm-images/1",
    of_splits(images="uint8 rows C H W", labels="uint8 rows"),
    {"dataset": str, "classes": int, "train_sha256": str, "test_sha256": str},
    # Names, a line each, of what is more than a number; images left out; the training split that this one was drawn from.
    {"class_names": str, "broken": int, "part_of_sha256": str},
)


def fitted_on(images: ArrayFile, sha256: str) -> bool:
    """Whether weights whose record has this `train_sha256` were fitted on the training split, or on one that it is part of."""
    return sha256 in (images.attribute("train_sha256"), images.attributes.get("part_of_sha256"))

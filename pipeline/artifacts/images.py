"""images.h5: the data set, split and checked."""

from pipeline.artifacts.hdf5 import Format, of_splits

FORMAT = Format(
    "lfm-images/1",
    of_splits(images="uint8 rows C H W", labels="uint8 rows"),
    {"dataset": str, "classes": int, "train_sha256": str, "test_sha256": str},
    {"class_names": str, "broken": int},  # names, a line each, of what is more than a number; images left out
)

"""samples.h5: generated images, real ones through the autoencoder, and real ones through their noise."""

import numpy as np

from pipeline.artifacts.hdf5 import ArrayFile, Format
from pipeline.errors import UserError

FORMAT = Format(
    "lfm-samples/1",
    {
        "generated/images": "uint8 test C H W",
        "generated/labels": "uint8 test",
        "few/images": "uint8 test numbers C H W",
        "few/evaluations": "int64 numbers",
        "reconstructed/validation": "uint8 validation C H W",
        "reconstructed/test": "uint8 test C H W",
        "trajectories/images": "uint8 times classes C H W",
        "trajectories/times": "float64 times",
        "inversion/rows": "int64 classes",
        "inversion/decoded": "uint8 classes C H W",
        "inversion/returned": "uint8 classes C H W",
        "interpolations/images": "uint8 classes between C H W",
        "transfer/images": "uint8 classes targets C H W",
        "transfer/targets": "uint8 targets",
        "progress/images": "uint8 snapshots noises C H W",
        "progress/steps": "int64 snapshots",
    },
    {"nfe": float, "inversion_error": float, "labelled": int, "seed": int, "dataset": str},
)


def check_images(drawn: ArrayFile, images: ArrayFile) -> None:
    """Raises `UserError` where samples are not of these images: stages that are run by hand may be of several data sets."""
    expected, dataset = images.attribute("dataset"), drawn.attribute("dataset")
    if dataset != expected:
        raise UserError(f"samples: of data set '{dataset}', but the images are of '{expected}'; run `dvc repro`")
    if not np.array_equal(drawn.read("generated/labels"), images.read("test/labels")):
        raise UserError(f"samples: drawn for other test images than these of '{expected}'; run `dvc repro`")

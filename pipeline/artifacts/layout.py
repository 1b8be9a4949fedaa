"""What each format of HDF5 file holds: the one home of their layout, and what a file is checked against when it is opened."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pipeline.artifacts.files import IMAGES_FORMAT, LATENTS_FORMAT, PROGRESS_FORMAT, SAMPLES_FORMAT, SPLITS


class Layout(NamedTuple):
    """Arrays and attributes that a file must hold."""

    arrays: Mapping[str, str]  # of each: its dtype, then its axes; an axis is as long wherever its name stands
    attributes: Mapping[str, type]
    optional: Mapping[str, type] = MappingProxyType({})  # attributes that it may hold


def _of_splits(**arrays: str) -> dict[str, str]:
    """The same arrays for each split, whose own name stands for its axis of rows."""
    return {f"{split}/{name}": value.replace("rows", split) for split in SPLITS for name, value in arrays.items()}


LAYOUTS = {
    IMAGES_FORMAT: Layout(
        _of_splits(images="uint8 rows C H W", labels="uint8 rows"),
        {"dataset": str, "classes": int, "train_sha256": str, "test_sha256": str},
        {"class_names": str, "broken": int},  # names, a line each, of what is more than a number; images left out
    ),
    LATENTS_FORMAT: Layout(
        {
            **_of_splits(mean="float32 rows c h w", std="float32 rows c h w", labels="uint8 rows"),
            **{f"scale/{name}": "float32 c" for name in ("mean", "std")},
        },
        {
            "dataset": str,
            "classes": int,
            **{f"image_{name}": int for name in ("channels", "height", "width")},
            **{f"{name}_sha256": str for name in ("autoencoder", "train")},
        },
    ),
    PROGRESS_FORMAT: Layout({"steps": "int64 times", "latents": "float32 times noises c h w"}, {}),
    SAMPLES_FORMAT: Layout(
        {
            "generated/images": "uint8 test C H W",
            "generated/labels": "uint8 test",
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
    ),
}

"""Weights that come with the package: they serve only the data they were fitted on."""

from pathlib import Path

from pipeline.artifacts.files import read_json
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.errors import UserError


def check_bundled(section: str, folder: Path, images: ArrayFile) -> None:
    """Refuse bundled weights whose training images are not this data set's training split."""
    if not (folder / "record.json").is_file():
        raise UserError(f"{folder}: no bundled weights; set {section}.source: train in params.yaml")
    fitted = read_json(folder / "record.json", train_sha256=str)["train_sha256"]
    found = images.attribute("train_sha256")
    if found != fitted:
        raise UserError(
            f"{section}.source is 'bundled', but those weights were fitted on other images than this training split "
            f"(dataset {images.attribute('dataset')}, sha256 {str(found)[:12]}…, fitted on {fitted[:12]}…); "
            f"set {section}.source: train in params.yaml"
        )

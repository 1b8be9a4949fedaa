"""Weights that come with the package: they serve only the data they were fitted on."""

import shutil
from pathlib import Path

from pipeline.artifacts.files import read_json
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.artifacts.images import fitted_on
from pipeline.errors import UserError
from pipeline.run import Context


def copy(context: Context, name: str, images: ArrayFile) -> None:
    """Publish the bundled weights as the output `name`. Raises `UserError` where they were fitted on other images than this
    data set's training split; `name` is also the section of params.yaml that asked for them."""
    folder = context.input(name)
    check(name, folder, images)
    with context.publish(name) as part:
        shutil.copytree(folder, part, dirs_exist_ok=True)


def check(section: str, folder: Path, images: ArrayFile) -> None:
    """Raises `UserError` where bundled weights were fitted on other images than this data set's training split."""
    if not (folder / "record.json").is_file():
        raise UserError(f"{folder}: no bundled weights; set {section}.source: train in params.yaml")
    fitted, training = (
        read_json(folder / "record.json", train_sha256=str)["train_sha256"],
        images.attribute("train_sha256"),
    )
    if not fitted_on(images, fitted):
        raise UserError(
            f"{section}.source is 'bundled', but those weights were fitted on other images than this training split "
            f"(dataset {images.attribute('dataset')}, sha256 {str(training)[:12]}…, fitted on {fitted[:12]}…); "
            f"set {section}.source: train in params.yaml"
        )

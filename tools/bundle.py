"""Makes lfm/pretrained/ from what the pipeline trained: float16, with a record of how it was made.

python -m tools.bundle NAME, for example: python -m tools.bundle classifier
"""

import datetime
import os
import platform
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import diffusers
import torch
from safetensors.torch import load_file, save

from lfm.model import AUTOENCODER_FILES, LatentFlow
from lfm.nets.weights import digest
from pipeline.artifacts.files import read_json, write_json
from pipeline.errors import UserError
from pipeline.machine.publish import replacing
from pipeline.progress import say
from pipeline.run import ending_in_one_line

PRETRAINED = Path("lfm/pretrained")
FLOW_FILES = ("record.json", "curves.csv", "validation.csv")


def made_by(command: str) -> dict[str, Any]:
    """How and where weights were made."""
    return {
        "by": f"{command}, stored as float16 by python -m tools.bundle",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, {'a' if torch.cuda.is_available() else 'no'} GPU",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def bundle_classifier(name: str, folder: Path) -> None:
    """models/NAME → lfm/pretrained/NAME."""
    source = Path("models") / name
    for file in ("config.json", "curves.csv"):
        shutil.copyfile(source / file, folder / file)
    weights = load_file(source / "model.safetensors")
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    (folder / "model.safetensors").write_bytes(save(halves))
    record = read_json(source / "record.json") | {"made": made_by(f"python -m stages.classifier {name}")}
    write_json(folder / "record.json", record)


def bundle_mnist(folder: Path) -> None:
    """models/flow, with the autoencoder and the sampling defaults of models/latent_flow → lfm/pretrained/mnist."""
    LatentFlow.from_pretrained("models/latent_flow").save_pretrained(folder, torch.float16)
    for name in FLOW_FILES:
        shutil.copyfile(Path("models/flow") / name, folder / name)
    shutil.copyfile("models/flow_map/curves.csv", folder / "flow_map/curves.csv")
    fitted = read_json(folder / "record.json", train_sha256=str)["train_sha256"]
    write_json(
        folder / "flow_map/record.json",
        read_json(Path("models/flow_map/record.json"))
        | {"train_sha256": fitted, "made": made_by("python -m stages.distill")},
    )
    record = read_json(folder / "record.json") | {"made": made_by("python -m stages.train and stages.distill")}
    write_json(folder / "record.json", record)
    coder = Path("models/autoencoder")
    for name in ("record.json", "curves.csv"):  # of the autoencoder: as it was bundled, or as it was trained now
        shutil.copyfile(coder / name, folder / "autoencoder" / name)
    # The bundled one keeps its bytes, and so its digest in what was trained on it.
    if "made" in read_json(coder / "record.json"):
        shutil.copytree(coder, folder / "autoencoder", dirs_exist_ok=True)
        flow = read_json(folder / "flow.json") | {"autoencoder_sha256": digest(coder, AUTOENCODER_FILES)}
        write_json(folder / "flow.json", flow)


BUNDLES: dict[str, Callable[[Path], None]] = {
    "classifier": partial(bundle_classifier, "classifier"),
    "second_classifier": partial(bundle_classifier, "second_classifier"),
    "mnist": bundle_mnist,
}


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(BUNDLES)))
def main(name: str) -> None:
    with ending_in_one_line():
        target = PRETRAINED / name
        try:
            with replacing(target) as folder:
                BUNDLES[name](folder)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: no such file; train with source: train, by `dvc repro`") from error
        say(f"{target}: {sum(f.stat().st_size for f in target.rglob('*') if f.is_file()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

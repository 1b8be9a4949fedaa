"""Not a stage: makes lfm/pretrained/NAME from a trained model's folder, float16, with a record of how it was made.

python -m tools.bundle NAME FOLDER, for example: python -m tools.bundle classifier models/classifier
"""

import datetime
import os
import platform
import shutil
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

from pipeline.artifacts.files import PRETRAINED, publishing, read_json, write_json
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.progress import say
from pipeline.run import run

KEPT = {
    "autoencoder": ("config.json", "diffusion_pytorch_model.safetensors", "record.json", "curves.csv"),
    "classifier": ("config.json", "model.safetensors", "record.json", "curves.csv"),
    "flow": ("config.json", "model.safetensors", "flow.json", "record.json", "curves.csv", "validation.csv"),
}


def main(p: Params) -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in KEPT:
        raise UserError(f"usage: python -m tools.bundle NAME FOLDER, NAME one of {', '.join(KEPT)}")
    name, source = sys.argv[1], Path(sys.argv[2])
    missing = [file for file in KEPT[name] if not (source / file).is_file()]
    if missing:
        raise UserError(f"{source}: holds no {missing[0]}; a trained {name} has {', '.join(KEPT[name])}")
    target = PRETRAINED / name
    with publishing(target) as folder:
        for file in KEPT[name]:
            if file.endswith(".safetensors"):
                weights = load_file(source / file)
                save_file({k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, folder / file)
            else:
                shutil.copyfile(source / file, folder / file)
        record = read_json(source / "record.json")
        record["made"] = {
            "by": f"python -m stages.{'train' if name == 'flow' else name}, stored as float16 by python -m tools.bundle",
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, {'a' if torch.cuda.is_available() else 'no'} GPU",
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        }
        write_json(folder / "record.json", record)
    say(f"{target}: {sum(f.stat().st_size for f in target.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    run(main)

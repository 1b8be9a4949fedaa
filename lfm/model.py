"""Not a stage: a trained flow as its users need it, read from the folder that `train` makes."""

from pathlib import Path as FilePath
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from lfm.flow.path import Path, Velocity, as_velocity, last_time, make_path
from lfm.nets.latents import LatentScale
from lfm.nets.transformer import Transformer
from lfm.nets.weights import load_model
from pipeline.artifacts.files import FLOW, LATENTS, read_json
from pipeline.artifacts.hdf5 import ArrayFile
from pipeline.errors import UserError
from pipeline.params import FlowParams

Positive = Annotated[int, Field(ge=1, le=10**6)]
KEYS = {
    **{name: FlowParams.model_fields[name].annotation for name in ("path", "sigma_min", "prediction")},
    "scale_mean": list[float], "scale_std": list[Annotated[float, Field(gt=0)]],
    "image_channels": Positive, "image_height": Positive, "image_width": Positive, "autoencoder_sha256": str,
}  # fmt: skip


class Flow(NamedTuple):
    """The velocity and all that belongs to it."""

    transformer: Transformer
    velocity: Velocity  # (t, x, y) ↦ v, whatever the transformer predicts
    path: Path
    end: float  # up to which t to integrate
    scale: LatentScale
    image: tuple[int, int, int]  # channels, height, width of what it was trained for
    autoencoder_sha256: str

    @property
    def shape(self) -> list[int]:
        """Of one latent: channels, height, width."""
        return [self.transformer.channels, self.transformer.size, self.transformer.size]


def check_latents(flow: Flow, latents: ArrayFile) -> None:
    """Raises `UserError` where the latents are not of the autoencoder that the flow was trained with."""
    found = str(latents.attribute("autoencoder_sha256"))
    if found != flow.autoencoder_sha256:
        raise UserError(
            f"{LATENTS}: made by another autoencoder ({found[:12]}…) than the one that {FLOW} was trained with "
            f"({flow.autoencoder_sha256[:12]}…); run `dvc repro`"
        )


def load_flow(folder: FilePath, where: torch.device) -> Flow:
    """Read a trained flow. Raises `UserError` or `ConfigError` where a file is missing or damaged."""
    flow = read_json(folder / "flow.json", **KEYS)
    transformer = load_model(folder, Transformer).to(where)
    if not len(flow["scale_mean"]) == len(flow["scale_std"]) == transformer.channels:
        raise UserError(f"{folder}: flow.json is of another model than config.json; delete it and run `dvc repro`")
    path = make_path(flow["path"], flow["sigma_min"])
    return Flow(
        transformer,
        as_velocity(transformer, path, flow["prediction"]),
        path,
        last_time(path, divides_by_sigma=flow["prediction"] == "data"),
        LatentScale(torch.tensor(flow["scale_mean"]), torch.tensor(flow["scale_std"])),
        (flow["image_channels"], flow["image_height"], flow["image_width"]),
        flow["autoencoder_sha256"],
    )

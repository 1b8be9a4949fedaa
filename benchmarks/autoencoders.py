"""What was tried for the bundled autoencoder: its reconstructions, and how well a flow of 4,000 steps learns its latents. The
table stands in docs/autoencoders.md.

After `dvc repro`: python -m benchmarks.autoencoders [NAME ...]; an autoencoder takes up to an hour on two cores.
"""

import sys

import numpy as np
import torch

from benchmarks.ablations import AUTOENCODER, FLOW, FLOW_ALONE, IMAGES, LATENTS, Reference, header, train
from lfm.model import LatentFlow
from lfm.psnr import psnr
from pipeline.artifacts import hdf5, latents

VARIANTS = {
    "4 channels, KL 3e-3": "latent_channels=4 kl_weight=3e-3 shift=0 steps=16000 batch_size=64 learning_rate=2e-3",
    "4 channels, KL 1e-3, longer": "latent_channels=4 kl_weight=1e-3 shift=0 steps=30000 batch_size=64",
    "8 channels, KL 3e-3, short": "latent_channels=8 kl_weight=3e-3 shift=0 steps=5000",
    "params.yaml": "",
}
GUIDANCE: list[tuple[float, tuple[float, float]]] = [(1.0, (0, 1)), (1.3, (0.4, 0.8)), (2.0, (0.5, 0.9))]


def main() -> None:
    reference = Reference()
    images, labels = reference.images["validation"], reference.labels["validation"]
    header("variant", "PSNR, dB", "reconstructed", *(f"g = {scale:g} in {interval}" for scale, interval in GUIDANCE))
    for name in sys.argv[1:] or VARIANTS:
        flags = " ".join(f"-S autoencoder.{flag}" for flag in ["source=train", *VARIANTS[name].split()])
        workspace = train(name, f"{FLOW_ALONE} -S train.steps=4000 {flags}", ["autoencoder", "encode", "train"], IMAGES)
        model = LatentFlow.from_pretrained(workspace / FLOW, autoencoder=workspace / AUTOENCODER)
        with hdf5.reading(workspace / LATENTS, latents.FORMAT) as file:
            mean = model.scale.normalise(torch.from_numpy(file.read("validation/mean")))
        decoded = np.asarray(model.decode(mean, "np", batch_size=500, precision="auto"))
        closeness = psnr(torch.from_numpy(images), torch.from_numpy(decoded))
        cells = [reference.cell(decoded, labels, "test")]
        asked = reference.labels["test"]
        cells += [reference.cell(reference.generated(model, *g), asked, "validation") for g in GUIDANCE]
        print(f"| {name} | {closeness:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""The autoencoder: bundled, trained here, or brought by the user → models/autoencoder/."""

import re
import shutil
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lfm import random
from lfm.evaluation.psnr import psnr
from lfm.flow.schedule import warmup_cosine
from lfm.nets import autoencoder
from lfm.nets.augment import shifted
from lfm.nets.autoencoder import ImageAutoencoder
from pipeline import hub
from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.bundled import check_bundled
from pipeline.artifacts.files import (
    AUTOENCODER,
    IMAGES,
    IMAGES_FORMAT,
    PRETRAINED,
    given,
    publishing,
    sha256_of,
    write_csv,
    write_json,
)  # fmt: skip
from pipeline.errors import UserError
from pipeline.machine import scratch
from pipeline.machine.runtime import compiled, device, precision
from pipeline.params import AutoencoderParams, Params
from pipeline.progress import Progress, say
from pipeline.run import run
from pipeline.training import order
from pipeline.training.checkpoint import Checkpoints, State

BUNDLED = PRETRAINED / AUTOENCODER.name
FILES = (autoencoder.CONFIG, autoencoder.WEIGHTS)


def train(
    p: AutoencoderParams, images: Tensor, show: bool, saved: Checkpoints
) -> tuple[ImageAutoencoder, list[tuple[float, ...]]]:
    """Fit a small variational autoencoder to images (N, C, H, W). Returns it and its curves."""
    where = images.device
    torch.manual_seed(random.torch_seed(p.seed, "autoencoder"))
    model = autoencoder.build(p.unshuffle, images.shape[1], p.latent_channels, p.widths, p.layers)
    coder = ImageAutoencoder(model, images.shape[1], (images.shape[2], images.shape[3])).to(where)
    latent = (p.batch_size, *coder.latent)
    loss_of = partial(autoencoder.loss, model, kl_weight=p.kl_weight)
    loss_of = compiled(loss_of, where, "autoencoder") if p.compile else loss_of
    optimizer = torch.optim.AdamW(model.parameters(), p.learning_rate, (0.9, 0.99), weight_decay=0.01, fused=True)
    curves: list[tuple[float, ...]] = []
    state = State({"model": model}, optimizer, {"curves": curves})
    start = saved.resume(state)
    with Progress(p.steps, "autoencoder", "step", show) as progress:
        progress.advance(start)
        for step in range(start, p.steps):
            for group in optimizer.param_groups:
                group["lr"] = p.learning_rate * warmup_cosine(step, p.steps, p.steps // 20)
            rows = order.batch_rows(p.seed, step, p.batch_size, len(images)).to(where)
            batch = shifted(images[rows], random.uniform(p.seed, "shift", step, (p.batch_size, 2)).to(where), p.shift)
            noise = random.normal(p.seed, "posterior", step, latent).to(where)
            with precision(p.precision, where):
                loss, squared, kl = loss_of(coder.pixels(batch), noise)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 50 == 0 or step == p.steps - 1:
                read = saved.sound(step, loss.item(), curves)
                curves.append((step, read, squared.item(), kl.item() / noise[0].numel()))
            saved.keep(state, step + 1, p.steps)
            progress.advance(loss=curves[-1][1])
    model.eval().requires_grad_(False)
    return coder, curves


def reconstruct(coder: ImageAutoencoder, images: Tensor, name: str) -> Tensor:
    """Images decoded from the mean of their posterior, uint8 as they came."""
    with torch.no_grad(), precision(name, images.device):
        return torch.cat([coder.decode(coder.moments(part)[0]) for part in images.split(500)])


def bring(source: str, revision: str | None, show: bool) -> Path:
    """The folder of an autoencoder that the user names: a local directory, or a hub id that is downloaded.

    Raises `UserError` where it is missing or its content is not the one that `revision` pins.
    """
    local = given(source)
    if local.is_dir():
        found = sha256_of(local, FILES)
        if revision != found:
            raise UserError(
                f"autoencoder.revision is {revision!r}, but the content of {source} has {found}; set autoencoder.revision: {found}"
            )
        return local
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        raise UserError(
            f"autoencoder.source: '{source}' is neither bundled, train, a directory that exists nor a hub id (owner/name); mend it"
        )
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            newest = f"set autoencoder.revision: {hub.newest(source)}"
        except Exception as error:  # the hub's client raises many kinds, and this is only a hint
            newest = f"its newest could not be asked for ({type(error).__name__}); copy it from the model's page"
        raise UserError(
            f"autoencoder.revision is {revision!r}; for the hub's {source} it must be a commit of 40 hex digits: {newest}"
        )
    try:
        return hub.files(source, revision, FILES, show)
    except UserError as error:
        raise UserError(f"autoencoder.source: {error}") from error


def adopt(source: str, folder: Path, sample: Tensor) -> autoencoder.AutoencoderKL | autoencoder.AutoencoderTiny:
    """The autoencoder of a folder that the user named as `source`, tried on one image (1, C, H, W)."""
    model = autoencoder.load(folder)
    coder = ImageAutoencoder(model, sample.shape[1], (sample.shape[2], sample.shape[3]))
    try:
        with torch.no_grad():
            coder.decode(coder.moments(sample)[0])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"autoencoder.source: {source} does not work on images of {list(sample.shape[1:])} ({reason})"
        ) from error
    return model


def main(p: Params) -> None:
    source = p.autoencoder.source
    with arrays.reading(IMAGES, IMAGES_FORMAT) as file, publishing(AUTOENCODER) as folder:
        if source == "bundled":
            check_bundled("autoencoder", BUNDLED, file)
            shutil.copytree(BUNDLED, folder, dirs_exist_ok=True)
            return
        if source != "train":
            brought = bring(source, p.autoencoder.revision, p.runtime.progress)
            model = adopt(source, brought, torch.from_numpy(file.read("train/images", 0, 1)))
            autoencoder.save(folder, model)
            write_json(folder / "record.json", {"source": source, "revision": p.autoencoder.revision})
            return
        images, held_out = (torch.from_numpy(file.read(f"{s}/images")).to(device()) for s in ("train", "validation"))
        with scratch.opened() as kept:
            saved = Checkpoints(kept, p.runtime.checkpoint_every)
            coder, curves = train(p.autoencoder, images, p.runtime.progress, saved)
        score = psnr(held_out, reconstruct(coder, held_out, p.autoencoder.precision))
        autoencoder.save(folder, coder.model)
        write_csv(folder / "curves.csv", ("step", "loss", "squared_error", "kl_per_latent_dimension"), curves)
        record = {"params": p.autoencoder.model_dump(), "train_sha256": file.attribute("train_sha256")}
        write_json(folder / "record.json", {**record, "psnr_validation": round(score, 3)})
    say(f"{AUTOENCODER}: PSNR {score:.2f} dB on the validation images")


if __name__ == "__main__":
    run(main, "autoencoder")

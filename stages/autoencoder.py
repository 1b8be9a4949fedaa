"""The autoencoder: bundled, trained here, or brought by the user → models/autoencoder/."""

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lfm import random
from lfm.flow.schedule import warmup_cosine
from lfm.nets import autoencoder
from lfm.nets.augment import shifted
from lfm.nets.autoencoder import FILES, ImageAutoencoder
from lfm.precision import precision, resolve
from lfm.psnr import psnr
from pipeline import hub
from pipeline.artifacts import bundled, hdf5, images
from pipeline.artifacts.files import write_csv, write_json
from pipeline.errors import UserError
from pipeline.params import format_value
from pipeline.paths import user_folder
from pipeline.progress import say
from pipeline.run import Context, run
from pipeline.training.checkpoint import State
from pipeline.training.init import begin_with, check_digest, init_folder
from pipeline.training.loop import Loop, compiled
from pipeline.training.order import batch_rows
from pipeline.training.together import mean, shared

Curves = list[tuple[float, ...]]


def train(context: Context, pictures: Tensor) -> tuple[ImageAutoencoder, Curves]:
    """Fit a small variational autoencoder to images (N, C, H, W). Returns it and its curves."""
    p, device = context.params.autoencoder, pictures.device
    torch.manual_seed(random.torch_seed(p.seed, "autoencoder"))
    model = autoencoder.build(p.unshuffle, pictures.shape[1], p.latent_channels, p.widths, p.layers)
    if p.init is not None:
        folder = init_folder("autoencoder", p.init, p.init_digest, "autoencoder", FILES)
        begin_with("autoencoder", p.init, model, autoencoder.load(folder).state_dict())
    coder = ImageAutoencoder(model, pictures.shape[1], (pictures.shape[2], pictures.shape[3])).to(device)
    latent = (p.batch_size, *coder.latent)
    loss_of = partial(autoencoder.loss, model, kl_weight=p.kl_weight)
    loss_of = compiled(loss_of, "autoencoder", device) if p.compile else loss_of
    loss_of = shared(loss_of, model, context.ranks, "autoencoder", p.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), p.learning_rate, (0.9, 0.99), weight_decay=0.01, fused=True)
    curves: Curves = []
    loop = Loop(
        context, "autoencoder", State({"model": model}, optimizer, {"curves": curves}), p.steps,
        lambda step: p.learning_rate * warmup_cosine(step, p.steps, p.steps // 20),
    )  # fmt: skip
    for step in loop:
        rows = random.moved(batch_rows(p.seed, step, p.batch_size, len(pictures)), device)
        moves = random.moved(random.uniform(p.seed, "shift", step, (p.batch_size, 2)), device)
        noise = random.moved(random.normal(p.seed, "posterior", step, latent), device)
        with precision(p.precision, device):
            loss, squared, kl = loss_of(coder.pixels(shifted(pictures[rows], moves, p.shift)), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == p.steps - 1:
            read = loop.checked(loss, step, curves)
            squared_error, nats = (mean(value, context.ranks) for value in (squared, kl))
            curves.append((step, read, squared_error, nats / noise[0].numel()))
    model.eval().requires_grad_(False)
    return coder, curves


def reconstruct(coder: ImageAutoencoder, pictures: Tensor, name: str) -> Tensor:
    """Images decoded from the mean of their posterior, uint8 as they came."""
    with torch.no_grad(), precision(name, pictures.device):
        return torch.cat([coder.decode(coder.moments(part)[0]) for part in pictures.split(500)])


def bring(source: str, revision: str | None, show: bool) -> Path:
    """The folder of an autoencoder that the user names: a local directory, or a hub id that is downloaded.

    Raises `UserError` where it is missing or its content is not the one that `revision` pins.
    """
    local = user_folder(source)
    if local is not None:
        check_digest("autoencoder.revision", revision, source, local, FILES)
        return local
    hub_id = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)((?:/\w[\w.-]*)*)", source)
    if hub_id is None:
        raise UserError(
            f"autoencoder.source: {format_value(source)} is neither bundled, train, a directory that exists nor a hub id "
            "(owner/name, or owner/name/folder); mend it"
        )
    model, folder = hub_id.groups()
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            newest = f"set autoencoder.revision: {hub.newest(model)}"
        except Exception as error:  # the hub's client raises many kinds, and this is only a hint
            newest = f"its newest could not be asked for ({type(error).__name__}); copy it from the model's page"
        raise UserError(
            f"autoencoder.revision is {revision!r}; for the hub's {model} it must be a commit of 40 hex digits: {newest}"
        )
    try:
        return hub.files(model, revision, [f"{folder}/{name}".lstrip("/") for name in FILES], show)
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


def main(context: Context) -> None:
    p = context.params.autoencoder
    with hdf5.reading(context.input("images"), images.FORMAT) as file:
        if p.source == "bundled":
            bundled.copy(context, "autoencoder", file)
            return
        if p.source != "train":
            folder = bring(p.source, p.revision, context.params.runtime.progress)
            model = adopt(p.source, folder, torch.from_numpy(file.read("train/images", 0, 1)))
            with context.publish("autoencoder") as part:
                autoencoder.save(part, model)
                write_json(part / "record.json", {"source": p.source, "revision": p.revision})
            return
        pictures, held_out = (
            torch.from_numpy(file.read(f"{s}/images")).to(context.device) for s in ("train", "validation")
        )
        record = {
            "params": p.model_dump(),
            "precision": resolve(p.precision, context.device),
            "train_sha256": file.attribute("train_sha256"),
        }
    coder, curves = train(context, pictures)
    score = psnr(held_out, reconstruct(coder, held_out, p.precision))
    with context.publish("autoencoder") as part:
        autoencoder.save(part, coder.model)
        write_csv(part / "curves.csv", ("step", "loss", "squared_error", "kl_per_latent_dimension"), curves)
        write_json(part / "record.json", {**record, "psnr_validation": round(score, 3)})
    say(f"{context.output('autoencoder')}: PSNR {score:.2f} dB on the validation images")


if __name__ == "__main__":
    run(main)

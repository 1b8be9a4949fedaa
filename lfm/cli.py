"""The command `lfm`: digits out of noise, and back.

A command is one function of `o`, the object with its arguments, registered by `@command(commands, …flags)`. It raises `ConfigError`
or a click error for a user's mistake. Heavy imports stand within functions, so that `lfm --help` is quick.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import click
from click import BadParameter

import lfm
from lfm.errors import ConfigError
from lfm.terminal import (
    FRAME,
    GIF,
    LAST_FRAME,
    NPZ,
    PNG,
    Labels,
    Number,
    Target,
    command,
    counted,
    identity,
    load,
    note,
    parameters_of,
    report,
    run,
    scans,
    write_gif,
    write_npz,
    write_png,
)  # fmt: skip

MOST, MOST_IN_GRID, MOST_ANIMATED = 10_000_000, 4096, 100  # pictures in a file
BATCH = 64
SAMPLER = ("seed", "steps", "solver", "guidance", "autoguidance")
LIKE = ("labels", "n", *SAMPLER, "columns", "zoom")  # what `--like` takes over
COMMON = ("model", "device", "force", "json", "quiet")
SCANS = click.argument("files", nargs=-1, required=True, metavar="SCAN...")


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(lfm.__version__, prog_name="lfm", message="%(prog)s %(version)s")
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Draw handwritten digits with a flow, and see what it does.

    \b
      lfm sample 3 1 4 -n 8 --seed 0 -o grid.png

    Completion in bash: eval "$(_LFM_COMPLETE=bash_source lfm)"; also zsh_source, fish_source.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """What the shell calls."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no temporary file stays behind
    code = run(commands)
    sys.stderr.flush()
    os._exit(code)  # taking torch down takes a second


@command(commands, "out", *SAMPLER, "columns", "zoom", *COMMON)
@click.argument("labels", type=Labels(), nargs=-1)
@click.option("--digits", type=Labels(), help="Labels as a range, such as 0-9.")
@click.option("-n", "n", type=Number(int, 1, 1_000_000), help="Pictures of each label.  [default: 1]")
@click.option("--like", metavar="PNG", help="Take what is not given from a picture that lfm sample drew.")
def sample(o: Any) -> None:
    """Draw pictures of digits. Without LABELS, which ones is drawn too.

    \b
      lfm sample 3 1 4 -n 8 --seed 0 -o grid.png    a grid; its parameters are in the file
      lfm sample --like grid.png -o again.png       the same picture, byte for byte
      lfm sample 0-9 -n 1000 -o many.npz            arrays `images`, `labels` and `seed`
    """
    o.labels = [label for group in (*o.labels, o.digits or ()) for label in group] or None
    before = parameters_of(o.like) if o.like else {}
    for key in LIKE:
        setattr(o, key, before.get(key) if getattr(o, key) is None else getattr(o, key))
    n, total = o.n or 1, (o.n or 1) * len(o.labels or [0])
    target = Target(o.out or "sample.png", (PNG, NPZ), o.force, o.as_json)
    if total > (most := MOST if target.suffix == NPZ else MOST_IN_GRID):
        more = "" if target.suffix == NPZ else ", or write arrays with -o many.npz"
        raise BadParameter(
            f"{total:,} pictures in all; a {target.suffix} takes at most {most:,}: ask for fewer{more}", param_hint="-n"
        )
    flow = load(o.model, o.device)
    import numpy as np

    if before and identity(flow) != before.get("model"):
        raise BadParameter(f"{o.like!r} was drawn by another model; name it with --model", param_hint="--like")
    if o.model is None and flow.flow_map is not None and all(getattr(o, name) is None for name in SAMPLER[1:]):
        o.steps = flow.flow_map.evaluations  # the bundled model's are as good as the flow: README, "How good it is"
    batches = counted(
        flow.stream(
            o.labels, n, seed=o.seed, steps=o.steps, solver=o.solver, guidance_scale=o.guidance,
            autoguidance_scale=o.autoguidance, output_type="np", batch_size=min(BATCH, total),
        ),
        total, o.quiet,
    )  # fmt: skip
    with target.writing() as file:
        if target.suffix == NPZ:
            last, labels = write_npz(file, batches, (total, *flow.image_shape))
        else:
            every = list(batches)
            last, labels = every[-1], np.concatenate([batch.labels for batch in every])
            columns = o.columns or (n if o.labels and len(o.labels) > 1 and n > 1 else min(total, 10))
            settings = {key: getattr(o, key) for key in LIKE} | {
                "seed": last.seed,
                "columns": columns,
                "zoom": o.zoom or 4,
            }
            images: list[Any] = [image for batch in every for image in batch.images]
            write_png(file, images, columns, o.zoom or 4, {"command": "sample", "model": identity(flow), **settings})
    result = {"file": target.name, "images": total, "seed": last.seed, "nfe": round(last.nfe, 2)}
    result |= {"labels": [int(label) for label in labels]} if total <= MOST_IN_GRID else {}
    plural = "s" if total > 1 else ""
    evaluations = f"{last.nfe:.0f} evaluation{'s' if last.nfe != 1 else ''}"
    report(f"{target.name}: {total:,} picture{plural}, seed {last.seed}, {evaluations} each", result, o)


@command(commands, "out", *SAMPLER, "columns", "zoom", *COMMON)
@click.argument("labels", type=Labels(), nargs=-1, required=True)
def path(o: Any) -> None:
    """Noise becoming a digit, as an animation. A strip with -o FILE.png.

    \b
      lfm path 7 -o seven.gif
      lfm path 0-9 --grid 5 --seed 1 -o ten.gif
    """
    labels = [label for group in o.labels for label in group]
    if len(labels) > MOST_ANIMATED:
        raise BadParameter(f"{len(labels)} of them; accepted: up to {MOST_ANIMATED}", param_hint="LABELS")
    target = Target(o.out or "path.gif", (GIF, PNG), o.force, o.as_json)
    animated = target.suffix == GIF
    flow = load(o.model, o.device)
    drawn = flow.sample(
        labels, seed=o.seed, steps=o.steps or 40, solver=o.solver, guidance_scale=o.guidance,
        autoguidance_scale=o.autoguidance, output_type="np", batch_size=min(BATCH, len(labels)),
        return_path=True if animated else [i / 9 for i in range(10)],
    )  # fmt: skip
    frames: Any = drawn.path
    with target.writing() as file:
        if animated:
            write_gif(
                file, frames, o.columns or min(len(labels), 10), o.zoom or (8 if len(labels) < 5 else 4), LAST_FRAME
            )
        else:
            images = [frame[i] for i in range(len(labels)) for frame in frames]
            write_png(file, images, len(frames), o.zoom or 4, {"command": "path", "labels": labels, "seed": drawn.seed})
    result = {"file": target.name, "labels": labels, "seed": drawn.seed, "times": drawn.times}
    report(f"{target.name}: {len(frames)} frames, seed {drawn.seed}", result, o)


@command(commands, "label", "out", "steps", "guidance", "zoom", *COMMON)
@SCANS
@click.option("--to", type=Labels(), multiple=True, help="Digits to draw.  [default: all]")
def transfer(o: Any) -> None:
    """The same hand as other digits. Each SCAN, then the digits --to in its style.

    \b
      lfm transfer scan.png --to 9 -o nine.png
    """
    target = Target(o.out or "transfer.png", (PNG,), o.force, o.as_json)
    flow = load(o.model, o.device)
    if not flow.classes:
        raise BadParameter(
            "this model knows no labels, so no other digits; name another with --model", param_hint="--to"
        )
    before = scans(flow, o.files, o.quiet)
    to = [label for group in o.to for label in group] or list(range(flow.classes))
    drawn = flow.transfer(before, to, o.label, guidance_scale=o.guidance, output_type="np", **_steps(o))
    images = [image for i, x in enumerate(before) for image in (x, *(part[i] for part in drawn))]
    with target.writing() as file:
        write_png(file, images, len(to) + 1, o.zoom or 4, {"command": "transfer", "to": to})
    report(f"{target.name}: the scan, then {', '.join(map(str, to))}", {"file": target.name, "to": to}, o)


@command(commands, "out", "seed", "steps", "zoom", *COMMON)
@click.argument("a")
@click.argument("b")
@click.option("-n", "n", type=Number(int, 2, 1000), default=10, help="Pictures, both ends included.  [default: 10]")
def interpolate(o: Any) -> None:
    """From A to B through the noise. Each is a digit to draw, or a scan.

    \b
      lfm interpolate 3 8 --seed 0 -o between.png
      lfm interpolate scan.png 8 -n 40 -o between.gif
    """
    target = Target(o.out or "interpolate.png", (PNG, GIF), o.force, o.as_json)
    flow = load(o.model, o.device)
    ends: list[Any] = []
    for row, end in enumerate((o.a, o.b)):
        if re.fullmatch(r"\d{1,4}", end):
            drawn = flow.sample(int(end), seed=o.seed, rows=[row], output_type="latent", batch_size=1)
            o.seed = drawn.seed
            ends.append(drawn.images)
        else:
            ends.append(flow.encode(scans(flow, [end], o.quiet)))
    images = [part[0] for part in flow.interpolate(ends[0], ends[1], n=o.n, output_type="np", **_steps(o))]
    with target.writing() as file:
        if target.suffix == GIF:
            write_gif(file, [[image] for image in (*images, *images[-2:0:-1])], 1, o.zoom or 8, FRAME)
        else:
            write_png(file, images, 10, o.zoom or 4, {"command": "interpolate", "seed": o.seed})
    seed = "" if o.seed is None else f", seed {o.seed}"
    report(f"{target.name}: {o.n} pictures from {o.a} to {o.b}{seed}", {"file": target.name, "seed": o.seed}, o)


@command(commands, "label", "steps", "model", "device", "json", "quiet")
@SCANS
@click.option("--exact", is_flag=True, help="The exact divergence in place of an estimate.")
def logprob(o: Any) -> None:
    """How likely scans are under the model. For each SCAN, log p of its latents in nats.

    \b
      lfm logprob scan.png --label 3 --json
    """
    flow = load(o.model, o.device)
    divergence: Any = "exact" if o.exact else "hutchinson"
    estimate = flow.log_prob(scans(flow, o.files, o.quiet), o.label, divergence=divergence, **_steps(o))
    values = zip(o.files, estimate.nats, estimate.standard_error, estimate.bits_per_dim, strict=True)
    results = [
        {
            "file": name,
            "nats": round(float(v), 3),
            "standard_error": round(float(e), 3),
            "bits_per_dim": round(float(d), 4),
        }
        for name, v, e, d in values
    ]
    if o.as_json:
        click.echo(json.dumps(results, indent=2))
        return
    for r in results:
        click.echo(
            f"{r['file']}: {r['nats']} ± {2 * r['standard_error']:.3f} nats, {r['bits_per_dim']} bits a latent dimension"
        )


@command(commands, "out", "zoom", *COMMON)
@SCANS
def reconstruct(o: Any) -> None:
    """Scans through the autoencoder. Each SCAN, and below it what the autoencoder makes of it.

    \b
      lfm reconstruct scan.png -o both.png
    """
    import numpy as np

    target = Target(o.out or "reconstruct.png", (PNG,), o.force, o.as_json)
    flow = load(o.model, o.device)
    before = scans(flow, o.files, o.quiet)
    after = flow.decode(flow.encode(before), "np", batch_size=min(BATCH, len(before)))
    error = np.square(before.astype(float) - after).mean(axis=(1, 2, 3))
    psnr = [round(float(x), 2) for x in 10 * np.log10(255**2 / np.maximum(error, 1e-3))]
    with target.writing() as file:
        write_png(file, [*before, *after], len(before), o.zoom or 4, {"command": "reconstruct"})
    result = {"file": target.name, "psnr": dict(zip(o.files, psnr, strict=True))}
    report(f"{target.name}: PSNR {', '.join(map(str, psnr))} dB", result, o)


@command(commands, "json")
@click.argument("model", required=False)
def info(o: Any) -> None:
    """What a model is. MODEL is a folder or a hub id; without it, the bundled one.

    \b
      lfm info models/latent_flow
    """
    flow = load(o.model, "cpu")
    facts: dict[str, Any] = {
        "model": o.model or "bundled", "dataset": flow.config.get("dataset"), "classes": flow.classes,
        "images": flow.image_shape, "latents": flow.latent_shape,
        "parameters": sum(p.numel() for p in flow.transformer.parameters()), "path": flow.config["path"],
        "prediction": flow.config["prediction"], "sampler": flow.sampler._asdict(), "identity": identity(flow),
    }  # fmt: skip
    if o.as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        text = (
            " × ".join(map(str, value))
            if isinstance(value, tuple)
            else f"{value:,}"
            if isinstance(value, int)
            else value
        )
        click.echo(f"{key:12}{text}")


@command(commands, "json", "quiet")
@click.argument("folder")
def digest(o: Any) -> None:
    """The value that pins a folder in params.yaml. FOLDER holds images (data.digest) or an autoencoder (autoencoder.revision).

    \b
      lfm digest photos
    """
    root = Path(os.path.realpath(o.folder))
    if not root.is_dir():
        raise ConfigError(f"{o.folder}: no such folder; name one of images, or of an autoencoder")
    if (root / "config.json").is_file():
        from lfm.model import AUTOENCODER_FILES
        from lfm.nets import weights

        key, value = "autoencoder.revision", weights.digest(root, AUTOENCODER_FILES)
    else:
        from lfm.folder import folder_digest

        try:
            value, files = folder_digest(root)
        except ConfigError as error:
            raise ConfigError(f"{o.folder}: {error}") from error
        key = "data.digest"
        for words in (*files.notes, f"{len(files.images):,} images of {len(files.classes)} classes"):
            note(f"{o.folder}: {words}", o.quiet)
    click.echo(json.dumps({key: value}) if o.as_json else f"{key}: {value}")


@command(commands, "model", "force", "json", "quiet")
@click.argument("kind", type=click.Choice(["onnx"]))
@click.option("-o", "--out", default="onnx", show_default=True, metavar="DIR", help="Folder to write.")
def export(o: Any) -> None:
    """A model for runtimes without torch. KIND is onnx: velocity, flow map, encoder, decoder and model.json.

    \b
      lfm export onnx -o digits
    """
    folder = Path(o.out)
    if folder.exists() and not o.force and (not folder.is_dir() or any(folder.iterdir())):
        raise BadParameter(f"{o.out!r} is there and not empty; name another folder, or add --force", param_hint="-o")
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the export needs onnx and onnxscript; install them with `pip install lfm[export]`"
        ) from error
    flow = load(o.model, "cpu")
    from lfm.export import export_onnx

    export_onnx(flow, folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    report(
        f"{o.out}: {', '.join(f'{n} {b / 1e6:.1f} MB' for n, b in sizes.items())}", {"folder": o.out, "bytes": sizes}, o
    )


@command(commands, "quiet")
@click.argument("folder", default="web/dist")
@click.option("--port", type=Number(int, 0, 65535), default=8000, show_default=True, help="0 takes a free one.")
def page(o: Any) -> None:
    """Serve a built page on this machine. FOLDER is what `make page` builds in a clone.  [default: web/dist]

    \b
      lfm page --port 8080
    """
    from lfm.page import serve

    serve(o.folder, o.port, lambda url: note(f"{url} (Ctrl-C ends it)", o.quiet))


def _steps(o: Any) -> dict[str, Any]:
    """The flag --steps, where it is given: the library's methods have defaults of their own."""
    return {} if o.steps is None else {"steps": o.steps}


if __name__ == "__main__":
    main()

"""What the commands of `lfm.cli` share: flags, files written whole, one-line errors. Heavy imports wait until they are needed."""

import functools
import gc
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import click
from click import BadParameter, ParamType

import lfm
from lfm.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from lfm.model import LatentFlow, Samples

PNG, GIF, NPZ = ".png", ".gif", ".npz"
CHUNK = "lfm"  # the text chunk of a PNG that holds its parameters
FRAME, LAST_FRAME = 60, 1500  # milliseconds in a GIF
BAR_FROM = 129  # pictures from which on a progress bar is drawn
ARGUMENTS = {
    "guidance_scale": "--guidance",
    "autoguidance_scale": "--autoguidance",
    "solver": "--solver",
}  # of the library, that a flag sets


class Number(ParamType):
    """A number within limits, both included."""

    name = "number"

    def __init__(self, kind: type[int] | type[float], least: int, most: int) -> None:
        self.kind, self.least, self.most = kind, least, most

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            number = self.kind(value)
        except ValueError:
            number = self.least - 1
        if not self.least <= number <= self.most:
            kind = "whole numbers" if self.kind is int else "numbers"
            self.fail(f"{value!r} can't be used; accepted: {kind} from {self.least:,} to {self.most:,}")
        return number


class Labels(ParamType):
    """Labels: `3`, `3,1,4` or `0-9`, as a tuple."""

    name = "labels"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        labels: list[int] = []
        for part in str(value).split(","):
            match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
            if not match or int(match[1]) > int(match[2] or match[1]):
                self.fail(f"{value!r} is no label; accepted: a number such as 3, or a range such as 0-9")
            labels += range(int(match[1]), int(match[2] or match[1]) + 1)
        return tuple(labels)


FLAGS = {
    "out": click.option("-o", "--out", metavar="FILE", help="Where to write; - is standard output."),
    "seed": click.option("-s", "--seed", type=Number(int, 0, 2**63 - 1), help="Default: drawn, and printed."),
    "steps": click.option("--steps", type=Number(int, 1, 10_000), help="Steps of the solver."),
    "solver": click.option(
        "--solver", help="euler, midpoint, heun, rk4, dopri5, euler_maruyama; flow_map: 1, 2 or 4 steps."
    ),
    "guidance": click.option("--guidance", type=Number(float, 0, 100), help="Guidance scale; 1 is none."),
    "autoguidance": click.option(
        "--autoguidance", type=Number(float, 0, 100), help="Scale of autoguidance; 1 is none, and half the passes."
    ),
    "label": click.option("--label", type=Number(int, 0, 9999), help="The digit on the scan."),
    "columns": click.option("--grid", "columns", type=Number(int, 1, 1000), help="Pictures in a row."),
    "zoom": click.option("--zoom", type=Number(int, 1, 64), help="Screen pixels a pixel.  [default: 4; GIF: 8]"),
    "model": click.option("-m", "--model", help="Folder or hub id.  [default: the bundled one, of MNIST]"),
    "device": click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."),
    "force": click.option("--force", is_flag=True, help="Overwrite the file."),
    "json": click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    "quiet": click.option("-q", "--quiet", is_flag=True, help="Print results and errors alone."),
}


def command(group: click.Group, *flags: str) -> Callable[[Callable[[Any], None]], click.Command]:
    """Register a command: a function of one object with all its arguments, and these flags after its own."""

    def register(function: Callable[[Any], None]) -> click.Command:
        @functools.wraps(function)
        def call(**values: Any) -> None:
            function(SimpleNamespace(**values))

        for name in reversed(flags):
            FLAGS[name](call)
        every = call.__click_params__  # type: ignore[attr-defined]  # what click's decorators gathered, last first
        call.__click_params__ = every[-len(flags) :] + every[: -len(flags)]  # type: ignore[attr-defined]
        return group.command()(call)

    return register


# --- models and scans ------------------------------------------------------------------------------------------------


def load(model: str | None, device: str) -> "LatentFlow":
    """A model on a device. Its imports are most of the time that one picture takes."""
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # threads that spin cost far more than they win on a busy machine
    gc.disable()  # collections between imports find nothing, and take a quarter of their time
    import diffusers.utils.import_utils
    import torch

    diffusers.utils.import_utils._scipy_available = False  # else its schedulers, unused here, import scipy: 0.7 s
    import lfm.nets.autoencoder  # noqa: F401
    from lfm.model import LatentFlow

    gc.enable()
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises many kinds
        reason = str(error).strip().splitlines()[0][:100]
        raise BadParameter(f"{device!r} can't be used ({reason}); take cpu", param_hint="--device") from error
    return LatentFlow.from_pretrained(model).to(device)


def identity(flow: "LatentFlow") -> str:
    """sha256 of a model's configuration and weights, on whatever device."""
    import hashlib

    total = hashlib.sha256(json.dumps(flow.config, sort_keys=True).encode())
    for model in filter(None, (flow.transformer, flow.flow_map)):
        for name, value in model.state_dict().items():
            total.update(name.encode() + value.cpu().numpy().tobytes())
    return total.hexdigest()


def scans(flow: "LatentFlow", names: Sequence[str], quiet: bool) -> "np.ndarray":
    """Image files as the model knows images, (n, C, H, W) uint8; says what was done to each."""
    import numpy as np

    from lfm import decoder, images

    channels, height, width = flow.image_shape
    result = []
    for name in names:
        image = images.read(Path(name))
        try:
            if flow.config.get("dataset") == "mnist":
                image, did = images.as_digit(image, height)
                pixels = np.asarray(image)[None]
            else:
                pixels = decoder.square(image, channels, height)
                did = f"{image.width}×{image.height}, the middle square resized to {width}×{height}"
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        note(f"{name}: {did}", quiet)
        result.append(pixels)
    return np.stack(result)


# --- files -----------------------------------------------------------------------------------------------------------


class Target:
    """A file to write, checked before the work begins: its folder, its suffix, and that it is not there.

    Args:
        name: as the user gives it; - is standard output.
        suffixes: the accepted ones; standard output gets the first.
    """

    def __init__(self, name: str, suffixes: Sequence[str], force: bool, as_json: bool = False) -> None:
        self.name, self.path = "standard output" if name == "-" else name, Path(os.path.realpath(name))
        self.standard = name == "-"
        self.suffix = suffixes[0] if self.standard else Path(name).suffix.lower()
        problem = None
        if self.standard:
            if sys.stdout.isatty():
                problem = f"standard output is a terminal; redirect it: lfm … -o - > picture{self.suffix}"
            elif as_json:
                problem = "standard output can't take both the file and --json; name a file"
        elif self.suffix not in suffixes:
            problem = f"{name!r} does not end in {' or '.join(suffixes)}; name it so"
        elif not self.path.parent.is_dir():
            problem = f"{name!r} lies in no directory that exists; make {self.path.parent}"
        elif self.path.exists() and not self.path.is_file():
            problem = f"{name!r} is no regular file; name one, or - for standard output"
        elif self.path.exists() and not force:
            problem = f"{name!r} exists; overwrite it with --force, or name another file"
        if problem:
            raise BadParameter(problem, param_hint="-o")

    @contextmanager
    def writing(self) -> Iterator[IO[bytes]]:
        """A file that takes the name when the block ends well, and vanishes otherwise."""
        if self.standard:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                yield file
            part.replace(self.path)
        except OSError as error:
            raise ConfigError(f"{self.name}: can't be written ({error.strerror or error}); write elsewhere") from error
        finally:
            part.unlink(missing_ok=True)


def write_png(
    file: IO[bytes], images: "Sequence[np.ndarray]", columns: int, zoom: int, parameters: dict[str, Any]
) -> None:
    """A grid of images (C, H, W) uint8, its parameters in a text chunk."""
    from PIL.PngImagePlugin import PngInfo

    from lfm.images import grid

    info = PngInfo()
    info.add_text(CHUNK, json.dumps({"version": lfm.__version__, **parameters}))
    grid(images, columns, zoom).save(file, "PNG", pnginfo=info)


def write_gif(file: IO[bytes], frames: "Sequence[Sequence[np.ndarray]]", columns: int, zoom: int, last: int) -> None:
    """An animation, each frame a grid; `last` is how long the last one stays, in milliseconds."""
    from lfm.images import grid

    sheets = [grid(images, columns, zoom) for images in frames]
    sheets = [s.point(lambda v: v // 8 * 255 // 31) if s.mode == "L" else s for s in sheets]  # 32 greys: half the size
    durations = [FRAME] * (len(sheets) - 1) + [last]
    sheets[0].save(file, "GIF", save_all=True, append_images=sheets[1:], duration=durations, loop=0)


def write_npz(file: IO[bytes], batches: "Iterable[Samples]", shape: tuple[int, ...]) -> "tuple[Samples, np.ndarray]":
    """`images`, `labels` and `seed`, a batch in memory at a time. Returns the last batch, and all labels."""
    import zipfile

    import numpy as np
    from numpy.lib import format as npy

    labels = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            npy.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for batch in batches:
                member.write(batch.images.tobytes())  # type: ignore[union-attr]  # output_type is "np"
                labels.append(batch.labels)
        y = np.concatenate(labels)
        for name, array in (("labels", y), ("seed", np.array(batch.seed))):
            with archive.open(f"{name}.npy", "w") as member:
                npy.write_array(member, array)
    return batch, y


def parameters_of(name: str) -> dict[str, Any]:
    """The parameters that `lfm sample` wrote into a picture."""
    from PIL import Image

    try:
        with Image.open(name, formats=["PNG"]) as image:
            values = json.loads(str(image.info[CHUNK]))
        if values["command"] == "sample":
            return dict(values)
        reason = f"it was drawn by lfm {values['command']}"
    except OSError as error:
        reason = error.strerror or "no PNG"
    except Exception:  # no such chunk, or another one
        reason = "it holds no parameters of lfm"
    raise BadParameter(f"{name!r} can't be used ({reason}); name a PNG that lfm sample drew", param_hint="--like")


# --- what is printed -------------------------------------------------------------------------------------------------


def note(words: str, quiet: bool) -> None:
    """A line on standard error."""
    if not quiet:
        click.echo(words, err=True)


def report(words: str, result: dict[str, Any], o: Any) -> None:
    """The result as JSON on standard output, or a line on standard error."""
    if o.as_json:
        click.echo(json.dumps(result))
    else:
        note(words, o.quiet)


def counted(batches: "Iterable[Samples]", total: int, quiet: bool) -> "Iterator[Samples]":
    """Batches as they come, with a progress bar if there are many and standard error is a terminal."""
    if quiet or total < BAR_FROM or not sys.stderr.isatty():
        yield from batches
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch.labels))


def run(group: click.Group, words: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 for a user's mistake, 1 for an internal error, 130 for Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale's encoding, as Python does for stderr
    try:
        result = group.main(args=None if words is None else list(words), prog_name="lfm", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.Abort:  # Ctrl-C
        return 130
    except SystemExit as end:  # click ends with 1 where nobody reads on, as in `lfm info | true`
        return 141 if end.code == 1 else int(end.code or 0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except click.ClickException as error:
        where = (
            f" {error.ctx.info_name}" if isinstance(error, click.UsageError) and error.ctx and error.ctx.parent else ""
        )
        hint = f"; see lfm{where} --help"
        return _fail(f"lfm{where}: {_words(error)}{'' if '; ' in _words(error) else hint}")
    except ConfigError as error:
        message = re.sub(r"^\w+(?= is )", lambda m: ARGUMENTS.get(m[0], m[0]), str(error))
        return _fail(f"lfm: {message}")
    except Exception as error:
        if os.environ.get("LFM_DEBUG"):
            raise
        _fail(
            f"lfm: internal error ({type(error).__name__}: {' '.join(str(error).split())[:200]}); LFM_DEBUG=1 shows where"
        )
        return 1


def _words(error: click.ClickException) -> str:
    """click's message on one line, beginning with the flag."""
    message = " ".join(error.format_message().split()).rstrip(".")
    return re.sub(
        r"^Invalid value for (.+?): ", lambda m: re.sub(r"[\[\]'.]", "", m[1].split(" / ")[0]) + ": ", message
    )


def _fail(message: str) -> int:
    click.secho(message, err=True, fg="red", color=False if os.environ.get("NO_COLOR") else None)
    return 2

"""How a stage runs, and the one object that it is given.

    def main(context: Context) -> None: ...

    if __name__ == "__main__":
        run(main)

`python -m stages.train` runs the stage `train` of dvc.yaml, `python -m stages.train other` the stage `other`: the same code
with other inputs, outputs and parameters. The stage asks for them by name: `context.input("latents")` is whichever
dependency of its dvc.yaml is called latents.
"""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lfm.errors import ConfigError
from pipeline import PARENT
from pipeline.entry import PIPELINE, Entry, read_entry
from pipeline.errors import UserError
from pipeline.machine import ranks, scratch
from pipeline.machine.device import device
from pipeline.machine.fingerprint import Fingerprint
from pipeline.machine.process import alone, die_with, end_with_parent, ending_by_signal
from pipeline.machine.publish import replacing
from pipeline.machine.ranks import Place, Ranks
from pipeline.machine.scratch import Scratch
from pipeline.params import Params
from pipeline.paths import dvc_root, scratch_home
from pipeline.progress import Live, Progress, log

WAYS_OUT = {
    errno.ENOSPC: "free some",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "the file system or `ulimit -f` allows no larger file: raise that",
    errno.EIO: "the disk or network share fails: check it",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it readable and writable"),
    errno.EAGAIN: "another process has it open for writing: close that",  # HDF5's lock
    **dict.fromkeys(
        (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),
        "this file system can't lock files: move the project to one that can",
    ),
}  # of errors of the machine


Make = Callable[[], dict[str, np.ndarray]]
KEY = "scratch folder"  # what rank 0 tells the others


class Context:
    """Parameters, inputs, outputs, scratch and progress of one stage.

    Several processes may share its work, each with a context of its own: see `ranks`. All but rank 0 follow: they read what it
    keeps, show nothing, and end where it publishes.

    Args:
        entry: the stage as dvc.yaml describes it.
        params: all of params.yaml.
        fingerprint: what the result follows from; None for tests that call a `main` of their own: then nothing is kept in
            scratch, and nothing is compared before publishing.
        place: of this process among those that share the stage.
    """

    def __init__(
        self, entry: Entry, params: Params, fingerprint: Fingerprint | None = None, place: Place | None = None
    ) -> None:
        self.entry, self.params, self.fingerprint = entry, params, fingerprint
        self.place = place or Place()
        self.leads = self.place.rank == 0
        self._exit = ExitStack()

    @classmethod
    def of(cls, stage: str, params: Params, pipeline: Path = PIPELINE) -> "Context":
        """One without a fingerprint."""
        return cls(read_entry(stage, pipeline), params)

    def input(self, name: str) -> Path:
        """The path of an input: see `Entry.input`."""
        return self.entry.input(name)

    def output(self, name: str) -> Path:
        """The path of an output: see `Entry.output`."""
        return self.entry.output(name)

    @contextmanager
    def publish(self, output: str | Path) -> Iterator[Path]:
        """A temporary name to write an output to, a file or a folder to fill. It takes the output's place when the block ends
        well and nothing that the stage started from was edited meanwhile, and vanishes otherwise. A process that follows ends
        here."""
        if not self.leads:
            sys.exit(0)
        path = self.output(output) if isinstance(output, str) else output
        with replacing(path, self.fingerprint.check if self.fingerprint else lambda: None) as part:
            yield part

    @cached_property
    def scratch(self) -> Scratch:
        """Where unfinished work survives the process."""
        if not self.leads:
            return Scratch(scratch.home() / self.entry.name / self.ranks.tell(KEY, ""), self.entry.name)
        if self.fingerprint is None:
            return Scratch()
        return self._exit.enter_context(scratch.opened(self.entry.name, self.fingerprint.key()))

    @cached_property
    def ranks(self) -> Ranks:
        """This process and those that share the stage's work. Asked for the first time, it starts or awaits the others."""
        if self.leads and self.fingerprint is None:
            return Ranks()
        folder = self.scratch.folder if self.leads else None  # in order before another process looks into it
        joined = self._exit.enter_context(ranks.joined(self.place, self.device))
        if folder is not None:
            joined.tell(KEY, folder.name)
        return joined

    def share(self, parts: Mapping[str, Make], what: str) -> None:
        """Make all of these parts, which `part` then finds, each process some of them. With a single process `part` makes them."""
        if self.ranks.size > 1:
            mine = [*parts][self.ranks.rank :: self.ranks.size]
            with self.progress(len(mine), f"{what}, 1 of {self.ranks.size}", "part") as progress:
                for name in mine:
                    self.part(name, parts[name])
                    progress.advance()
            self.ranks.wait()

    def part(self, name: str, make: Make) -> dict[str, np.ndarray]:
        """What `make` returns, or what it returned under this name before the process was killed."""
        return self.scratch.part(name, make)

    def progress(self, total: int, what: str, unit: str, done: int = 0) -> Progress:
        """Progress on stderr, where params.yaml wants it; `done` of it before."""
        return Progress(total, what, unit, self.params.runtime.progress and self.leads, done)

    def live(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[float]]) -> Live:
        """A table, live/NAME.csv, that grows while the stage runs; `rows` are those of an earlier process."""
        return Live(Path("live") / f"{name}.csv" if self.fingerprint else None, columns, rows)

    @cached_property
    def device(self) -> torch.device:
        """Where models run."""
        return device(self.place.local)

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.__exit__(*exc)  # type: ignore[arg-type]


def run(main: Callable[[Context], None], name: str | None = None, pipeline: Path = PIPELINE) -> None:
    """Call a stage's main.

    Args:
        name: of the stage in dvc.yaml; by default the command's argument, or else the name of main's module.
        pipeline: another file of that kind.
    """
    with ending_in_one_line():
        root = Path(__file__).resolve().parent.parent
        if root != Path.cwd().resolve():
            way = "unset PYTHONSAFEPATH (or python's -P)" if sys.flags.safe_path else f"run `cd {root}` first"
            raise UserError(f"{Path.cwd()}: stages run in the project's root, and this one's code is in {root}; {way}")
        end_with_parent(PARENT)
        entry = read_entry(name or _asked_for() or Path(main.__code__.co_filename).stem, pipeline)
        params, place = entry.params(), ranks.place()
        if place.rank > 0:
            follow(main, Context(entry, params, place=place))
            return
        with alone(scratch_home(dvc_root()) / entry.name / "lock"):
            fingerprint = Fingerprint(entry, params)
            with Context(entry, params, fingerprint, place) as context:
                main(context)
            fingerprint.check()


def follow(main: Callable[[Context], None], context: Context) -> None:
    """Call a stage's main in a process that helps rank 0. Its errors name it; that it lost the others is none of its own."""
    die_with(PARENT)
    log.setLevel(logging.ERROR)
    try:
        with context:
            main(context)
    except ranks.Lost:
        sys.exit(2)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        raise UserError(f"{context.place}: {line}") from error


def _asked_for() -> str | None:
    if len(sys.argv) > 2:
        raise UserError(f"{' '.join(sys.argv[1:])}: a stage takes one argument at most, its name in {PIPELINE}")
    return sys.argv[1] if len(sys.argv) == 2 else None


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """End the process with exit code 2 and one line for a user's mistake, with 128 + signal where one ended it.

    `LFM_DEBUG=1` shows tracebacks.
    """
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # RMSNorm in bf16, as autocast has it
    with ending_by_signal():
        try:
            yield
        except Exception as error:
            line = one_line(error)
            if line is None or os.environ.get("LFM_DEBUG") == "1":
                raise
            log.error("error: %s", line)
            sys.exit(2)


def one_line(error: BaseException) -> str | None:
    """An error in one line; None for an internal one."""
    if isinstance(error, UserError | ConfigError):
        return str(error)
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        reason = " ".join(str(error).split())[:200]
        return f"not enough memory ({reason}); lower batch_size, or the model's width or depth, in params.yaml"
    refused: BaseException | None = error
    while refused and getattr(refused, "errno", None) not in WAYS_OUT:
        refused = refused.__context__  # a library may have put its own words round it
    if isinstance(refused, OSError) and refused.errno in WAYS_OUT:
        reason, way = os.strerror(refused.errno).lower(), WAYS_OUT[refused.errno]
        return f"{refused.filename or 'the disk'}: {reason}; {way}, then run `dvc repro` again: it goes on where it stopped"
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    return None

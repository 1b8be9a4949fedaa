"""Several processes for the work of one stage: `LFM_PROCESSES=4 dvc repro`, or a launcher such as `torchrun` for several machines.

Rank 0 does what a single process does: it holds the lock, shows progress, keeps checkpoints and publishes. The others follow.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from pipeline.errors import UserError
from pipeline.progress import log

PROCESSES = "LFM_PROCESSES"
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what launchers set
HERE = "127.0.0.1"
TIMEOUT = timedelta(days=1)  # for one process to wait for another: rank 0 may wait for a lock, or validate for long
PATIENCE_S, POLL_S = 10.0, 0.1  # for this process to notice that another one ended
AGAIN = "run `dvc repro` again: it goes on where it stopped"


class Lost(UserError):
    """Another process ended before this one."""


class Place(NamedTuple):
    """Which of the processes that share a stage this one is."""

    rank: int = 0
    size: int = 1
    local: int = 0  # its rank on its machine

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"


def processes() -> int:
    """`LFM_PROCESSES` if it is set, else 1."""
    wanted = os.environ.get(PROCESSES) or "1"
    if not wanted.isdecimal() or not 1 <= int(wanted) <= 1024:
        raise UserError(f"{PROCESSES} is '{wanted}'; it must be a number from 1 to 1024: one a GPU is a good choice")
    return int(wanted)


def place() -> Place:
    """That which a launcher gave this process, by RANK, WORLD_SIZE and LOCAL_RANK; without one, rank 0 of 1.

    Raises `UserError` where they make no sense.
    """
    if not os.environ.get("RANK"):
        return Place()
    missing = next((name for name in LAUNCHED if not os.environ.get(name)), None)
    words = [os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    rank, size, local = (int(word) if word.isdecimal() else -1 for word in words)
    if missing or not 0 <= rank < size or local < 0:
        wrong = f"{missing} is not set" if missing else f"WORLD_SIZE is '{words[1]}' and LOCAL_RANK '{words[2]}'"
        raise UserError(
            f"RANK is '{words[0]}', but {wrong}; unset RANK for a single process, or let `torchrun` or `accelerate launch` set "
            "them all"
        )
    return Place(rank, size, local)


class Ranks:
    """All processes that share a stage, one of which this is. With a single one, nothing waits and nothing is sent."""

    def __init__(self, place: Place | None = None, store: dist.Store | None = None) -> None:
        self.place, self.store = place or Place(), store
        self.rank, self.size = self.place.rank, self.place.size

    def tell(self, name: str, value: str) -> str:
        """What rank 0 says under a name, which it uses once; the others wait for it."""
        if self.store is None:
            return value
        if self.rank == 0:
            self.store.set(name, value)
            return value
        return str(self.store.get(name).decode())

    def in_turn(self, name: str, work: Callable[[], int]) -> int:
        """What `work` returns, which rank 0 does first. Raises `UserError` where another process got another result."""
        mine = str(work()) if self.rank == 0 else ""
        first = int(self.tell(name, mine))
        if self.rank > 0 and (other := work()) != first:
            raise UserError(
                f"{name}: rank 0 has {first} and this process {other}; let all of them work in one folder, on a file system "
                "that all machines share"
            )
        return first

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))


@contextmanager
def joined(place: Place, device: torch.device) -> Iterator[Ranks]:
    """Connect with the other processes. Where no launcher started them, and `LFM_PROCESSES` asks for more than one, this one is
    rank 0 and starts the others with its own command line; they end with it.

    Raises `Lost` where another one ended before; rank 0 names the one that it started.
    """
    others, store, well = Others([]), None, False
    if not os.environ.get("RANK") and (n := processes()) > 1:
        place = Place(0, n, 0)
        store = dist.TCPStore(HERE, 0, n, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        shared = {"MASTER_ADDR": HERE, "MASTER_PORT": str(store.port), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
        os.environ |= {**shared, "RANK": "0", "LOCAL_RANK": "0"}
        others = Others([{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(1, n)])
    if place.size == 1:
        yield Ranks()
        return
    try:
        store = store or next(dist.rendezvous("env://", timeout=TIMEOUT))[0]
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            _backend(device, place), store=store, rank=place.rank, world_size=place.size, timeout=TIMEOUT
        )
        yield Ranks(place, store)
        well = True
    except SystemExit as ended:
        well = ended.code == 0  # a process that follows has done its work
        raise
    except Exception as error:
        if not _is_lost(error):
            raise
        known = bool(others.processes) and others.failed.wait(PATIENCE_S)
        reason = " ".join(str(error).split())[:200]
        raise Lost(others.reason() if known else f"another process can't be reached ({reason}); {AGAIN}") from error
    finally:
        if well:  # otherwise the others may be stuck, and leaving them would wait
            dist.destroy_process_group()
        others.end()


def _is_lost(error: BaseException) -> bool:
    """Whether it says that the connection to another process broke."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _backend(device: torch.device, place: Place) -> str:
    """NCCL between GPUs, of which each process needs its own; gloo for all else."""
    if device.type != "cuda" or os.environ.get("LFM_DEVICE", "cuda") != "cuda":
        return "gloo"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", place.size))
    return "cpu:gloo,cuda:nccl" if here <= torch.cuda.device_count() else "gloo"


class Others:
    """Processes that run this one's command line with other environments, watched.

    When one of them fails, and this process has not ended a few seconds later because it is stuck or busy, it is ended too.
    """

    def __init__(self, environments: list[dict[str, str]]) -> None:
        self.failed, self.ended = threading.Event(), threading.Event()
        self.processes: list[subprocess.Popen[bytes]] = []
        if environments:
            spec = sys.modules["__main__"].__spec__
            command = [sys.executable, "-m", spec.name if spec else "", *sys.argv[1:]]
            for own in environments:
                self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | own))
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.ended.wait(POLL_S):
            if any(process.poll() for process in self.processes):
                self.failed.set()
                if not self.ended.wait(PATIENCE_S):
                    log.error("error: %s", self.reason())
                    self.end()
                    os._exit(2)  # no lock, and nothing half-made under an output's name, outlives a process
                return

    def reason(self) -> str:
        """Which process failed, and how: one that a signal ended, if there is one, as others may have failed because of it."""
        codes = {rank: process.poll() or 0 for rank, process in enumerate(self.processes, 1)}
        rank = min(codes, key=lambda rank: codes[rank] or 256)
        code = codes[rank]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"process {rank} of {len(codes) + 1} {how}; {AGAIN}"

    def end(self) -> None:
        """End those that are left: what they were needed for is done, or lost."""
        self.ended.set()
        for process in self.processes:
            process.kill()
            process.wait()

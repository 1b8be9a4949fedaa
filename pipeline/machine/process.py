"""How a stage's process ends, and that no other does its work meanwhile: signals, the parent's death, lock files."""

import ctypes
import errno
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.machine.publish import named
from pipeline.progress import say

PR_SET_PDEATHSIG = 1  # of prctl(2)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S, POLL_S = 3.0, 0.1  # for a lock: a process that was just killed may still be about to vanish


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the block as an exception does, and the process with 128 + signal.

    Never with 0, whatever became of the exception on its way: DVC would take half a result for a whole one.
    """
    received: list[int] = []

    def end(number: int, frame: object) -> None:
        received.append(number)
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup, or a shell's background
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            say(f"ended by {signal.Signals(received[0]).name}")
            sys.exit(128 + received[0])


def end_with_parent(parent: int) -> None:
    """Under DVC: die with it, for a new `dvc repro` would start the same stage again. At once on Linux, within a second
    elsewhere. Raises `UserError` where DVC is dead already.

    Args:
        parent: who the parent was when this process began, some seconds of imports ago.
    """
    if "DVC_STAGE" not in os.environ:
        return
    # Was DVC dead even then, the parent is an init, in most cases of another session.
    if os.getppid() != parent or os.getsid(parent) != os.getsid(0):
        raise UserError(f"the `dvc` that started {os.environ['DVC_STAGE']} is gone; run `dvc repro` again")
    die_with(parent)


def die_with(parent: int) -> None:
    """End this process when its parent ends, and at once where it has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            return
    threading.Thread(target=_poll, args=(parent,), daemon=True).start()


def _poll(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def alone(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`; a dead process holds nothing. Where a living one does, `waiting`, the name of who wants it,
    says so and waits. Raises `UserError` that names that process where there is no such name, or it is this very process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline, announced = time.monotonic() + PATIENCE_S, False
    while (lock := try_lock(path)) is None:
        if time.monotonic() > deadline and not announced:
            owner = path.read_text(encoding="utf-8").strip() or "unknown"
            if waiting is None or owner == str(os.getpid()):
                raise UserError(
                    f"{path}: busy, process {owner} works on the same; wait for it or stop it, then run again"
                )
            say(f"{waiting}: process {owner} makes the very same; waiting for it")
            announced = True
        time.sleep(POLL_S)
        path.parent.mkdir(parents=True, exist_ok=True)  # as `pipeline.machine.scratch` may have cleaned it away
    try:
        yield
    finally:
        os.close(lock)


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock file `path` until it is closed, or None where another process holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        if path.exists() and path.stat().st_ino == os.fstat(file).st_ino:
            return file
    except OSError as error:
        os.close(file)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise named(error, path) from error
        return None
    os.close(file)  # the folder was cleaned away between opening and locking
    return None

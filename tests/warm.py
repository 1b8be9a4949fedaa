"""Processes that start at once: a server that has imported what is slow, and forks one for each `python -m MODULE` or `dvc`.

Nearly all that a tiny stage takes is `import torch`. The forked process has that behind it, and imports the project's own
modules itself, from its working directory; directory, environment, arguments, streams, exit code, signals and death are those
of the command that asked for it. Only its parent differs: what tests kills or the parent's death takes a real process.

A folder that stands first on PATH holds the two commands that ask.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path

SLOW = [
    "torch", "torch._dynamo", "diffusers.models.autoencoders.autoencoder_kl", "torchdiffeq", "sklearn.decomposition",
    "sklearn.linear_model", "sklearn.metrics", "sklearn.neighbors", "scipy.ndimage", "h5py", "pydantic", "requests", "jinja2",
    "PIL.Image", "tqdm", "click", "rich.console", "dvc.cli.parser", "dvc.repo.reproduce", "dvc.repo.experiments", "dvc.repo.push",
    "dvc.repo.pull", "dvc.repo.gc", "dvc.output", "dvc.dependency", "dvc.stage.run", "dvc.stage.cache", "dvc.dvcfile",
    "dvc.ignore", "dvc.scm", "dvc.parsing", "dvc.data_cloud", "dvc.cachemgr",
]  # fmt: skip
# Variables that are read when a process starts: with others than the server's, a real one is started.
OWN = ("PYTHONSAFE", "PYTHONUTF8", "PYTHONCOERCE", "PYTHONDONT", "PYTHONHASH", "OMP_", "LD_", "LC_", "LANG")
ASKING = """#!{python} -IS
import os, sys
command, *words = sys.argv
same = {{k: v for k, v in os.environ.items() if k.startswith({own})}} == {environment}
if not (same and ({name!r} == "dvc" or words[:1] == ["-m"])):
    os.execv({real!r}, [{real!r}, *words])
import array, json, signal, socket
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    message = json.dumps([{name!r}, words, os.getcwd(), dict(os.environ)]).encode()
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([len(message).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    server.sendall(message)
    answers = server.makefile()
    child = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(child, number))
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
"""


def commands(folder: Path, address: str) -> None:
    """Write `python` and `dvc` that ask the server at `address`."""
    environment = {k: v for k, v in os.environ.items() if k.startswith(OWN)}
    for name in ("python", "dvc"):
        real = str(Path(sys.executable).with_name(name))
        text = ASKING.format(
            python=sys.executable, real=real, name=name, address=address, own=OWN, environment=environment
        )
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)


def serve(listening: socket.socket) -> tuple[str, list[str]]:
    """Fork a process for each that asks. Returns in that process alone: what it was asked to be."""
    children: dict[int, socket.socket] = {}  # by pid
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:  # closed: who started the server is gone
                    for child in children:
                        os.kill(child, signal.SIGKILL)
                    os._exit(0)
                if key.fileobj is listening:
                    asking, _ = listening.accept()
                    size, streams, *_ = socket.recv_fds(asking, 8, 3)
                    name, words, folder, environment = json.loads(
                        asking.makefile("rb").read(int.from_bytes(size, "little"))
                    )
                    if child := os.fork():
                        for stream in streams:
                            os.close(stream)
                        asking.sendall(f"{child}\n".encode())
                        children[child] = asking
                        selector.register(asking, selectors.EVENT_READ, child)
                        selector.register(os.pidfd_open(child), selectors.EVENT_READ, child)
                        continue
                    listening.close()
                    for other in (asking, *children.values()):
                        other.close()
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                        os.close(stream)
                    os.chdir(folder)
                    os.environ.clear()
                    os.environ.update(environment)
                    return name, words
                child = key.data
                if isinstance(key.fileobj, int):  # the process has ended
                    _, status = os.waitpid(child, 0)
                    selector.unregister(key.fileobj)
                    os.close(key.fileobj)
                    asking = children.pop(child)
                    with suppress(KeyError):
                        selector.unregister(asking)
                    with suppress(OSError), asking:
                        asking.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                else:  # who asked has been killed
                    selector.unregister(key.fileobj)
                    os.kill(child, signal.SIGKILL)


def become(name: str, words: list[str]) -> None:
    """Do what the command does."""
    if name == "dvc":
        from dvc.cli import main as dvc

        sys.argv = ["dvc", *words]
        sys.exit(dvc())
    sys.argv = words[1:]
    sys.path[:1] = [str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    runpy.run_module(words[1], run_name="__main__", alter_sys=True)


def main() -> None:
    address, folder = sys.argv[1], Path(sys.argv[2])
    for module in SLOW:
        with suppress(ImportError):
            __import__(module)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    commands(folder, address)
    print("ready", flush=True)
    gc.freeze()
    name, words = serve(listening)
    code = 1
    try:
        become(name, words)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # to take this much apart would take as long as to import it


if __name__ == "__main__":
    main()

"""A folder of static files, served to browsers on this machine."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lfm.errors import ConfigError

HOST = "127.0.0.1"  # this machine alone


class Handler(SimpleHTTPRequestHandler):
    """Types that do not depend on the machine's registry, and no log."""

    extensions_map = {  # noqa: RUF012
        ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".json": "application/json",
        "": "application/octet-stream",
    }  # fmt: skip

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # another build may come under the same names
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


def server(folder: str | os.PathLike[str], port: int = 8000) -> ThreadingHTTPServer:
    """A server of a built page, bound and not yet running. `server_port` of the result is its port.

    Args:
        folder: the build, `web/dist` in this repository.
        port: 0 takes a free one.

    Raises `ConfigError` where there is no page, or the port can't be had.
    """
    if not (Path(folder) / "index.html").is_file():
        raise ConfigError(f"{folder}: no index.html; build the page with `make page`")
    try:
        return ThreadingHTTPServer((HOST, port), partial(Handler, directory=os.fspath(folder)))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port {port}: {error}; choose another one") from error


def serve(folder: str | os.PathLike[str], port: int = 8000, ready: Callable[[str], object] = lambda url: None) -> None:
    """Serve a built page until interrupted.

    Args:
        ready: called with the address once it can be opened.
    """
    with server(folder, port) as running:
        ready(f"http://{HOST}:{running.server_port}/")
        with suppress(KeyboardInterrupt):
            running.serve_forever()

"""Web servers on this machine."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


@contextmanager
def serve(directory: Path) -> Iterator[str]:
    """A web server on this machine for the files of ``directory``; gives its address, ending in a slash."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@contextmanager
def unreachable() -> Iterator[str]:
    """The address of a server that packets do not reach: its queue is full, so the kernel drops them."""
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        client.connect(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"

"""What several test files share."""

from __future__ import annotations

import http.server
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

# Ray reads it once, when it is imported, which a test may do before a command of ours has set it.
os.environ.setdefault("RAY_AUTH_MODE", "token")

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# Under CI a missing package is a failure of the set-up, not a reason to skip.
needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST.is_dir() and os.environ.get("CI") != "true",
    reason="needs the Debian package dataset-fashion-mnist",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first, so that no process is left alone with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def one_thread():
    """Workers of the tests share few cores; more threads than cores make all of them slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results directory with a few small real runs (see ``tests.results``); it is only read."""
    from tests.results import make_results

    return make_results(tmp_path_factory.mktemp("results") / "results")


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

"""What several test files share."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

# Several tests share few cores: OpenMP's threads, here and in all processes that tests start, must not wait busily.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import pytest
import torch
from filelock import FileLock

# Ray reads it once, when it is imported, which a test may do before a command of ours has set it.
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Also for fixtures of modules, which come before those of tests.
torch.set_num_threads(1)


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
def results(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A results directory with a few small real runs (see ``tests.support.results``); it is only read."""
    from tests.support.results import make_results

    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    # The processes of a parallel run share one.
    with FileLock(shared / "results.lock"):
        if not (shared / "results-made").exists():
            make_results(shared / "of-results" / "results")
            (shared / "results-made").touch()
    return shared / "of-results" / "results"

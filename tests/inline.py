"""Commands with their workers in this process, without Ray, where many runs are to be tested quickly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from ima_dist import launcher, worker
from ima_dist.config import Config


@contextlib.contextmanager
def _cluster(config: Config) -> Iterator[launcher.Cluster]:
    yield launcher.Cluster(workers=1, cpus_per_worker=1, use_gpu=False)


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the entry points run one worker in this process; give them ``--device cpu``."""

    def run_workers(*arguments: Any) -> dict[str, Any]:
        task, config, run, _, *further = arguments
        return worker.work(launcher.payload(task, config, run, *further))

    monkeypatch.setattr(launcher, "cluster", _cluster)
    monkeypatch.setattr(launcher, "run_workers", run_workers)

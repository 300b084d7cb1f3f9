"""Commands with their workers in this process, without Ray, where many runs are to be tested quickly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from ima_dist import train
from ima_dist.cli import running
from ima_dist.config.schema import Config
from ima_dist.launch.cluster import Cluster
from ima_dist.launch.workers import payload
from ima_dist.worker import main


@contextlib.contextmanager
def _cluster(config: Config, local: bool = False) -> Iterator[Cluster]:
    yield Cluster(workers=1, cpus_per_worker=1, use_gpu=False)


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the entry points run one worker in this process; give them ``--device cpu``."""

    def run_workers(*arguments: Any) -> dict[str, Any]:
        task, config, run, _, *further = arguments
        return main.work(payload(task, config, run, *further))

    for module in (train, running):
        monkeypatch.setattr(module, "workers_of", _cluster)
    monkeypatch.setattr(running, "run_workers", run_workers)

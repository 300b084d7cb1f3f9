"""Commands with their worker in this process, without Ray, where many runs are to be tested quickly."""

from __future__ import annotations

import contextlib

import pytest

from ima_dist import evaluate, train
from ima_dist.cli import running
from ima_dist.config.schema import Config
from ima_dist.launch import local
from ima_dist.launch.cluster import Cluster


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all commands work as with ``--local``."""

    def workers_of(config: Config, _: bool) -> contextlib.AbstractContextManager[Cluster]:
        return local.workers_of(config, local=True)

    for module in (train, evaluate, running):
        monkeypatch.setattr(module, "workers_of", workers_of)

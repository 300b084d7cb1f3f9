"""What unit tests of run directories share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.rundir.directory import RunDir


@pytest.fixture
def config() -> Config:
    return make_config("moons")


@pytest.fixture
def run(config: Config, tmp_path: Path) -> RunDir:
    return RunDir.create(config, tmp_path / "run")

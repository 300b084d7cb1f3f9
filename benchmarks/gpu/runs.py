"""Small runs in this process, without Ray."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.check import Check, Skip
from ima_dist.config.presets import make_config
from ima_dist.core.distributed import Interrupted
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training


@contextlib.contextmanager
def prepared(check: Check, preset: str, options: dict[str, Any], device: torch.device) -> Iterator[Training]:
    """A training of ``preset`` with ``options``, ready for ``fit``; skipped where the time runs out."""
    config = make_config(preset, options)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(config, Path(folder) / "run")
        try:
            yield Training(config, run, load(config.data, config.seed), device, check.over)
        except Interrupted:
            raise Skip("no time left") from None

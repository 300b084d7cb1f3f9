"""Networks and samples that the attacks are timed on: trained in this process, for a short time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import Box
from ima_dist.config.presets import make_config
from ima_dist.data.load import load
from ima_dist.data.types import Resident
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training


def trained(preset: str, options: dict[str, Any]) -> tuple[nn.Module, Tensor, Tensor, Box]:
    """A network trained with these options, the test samples (N, ...) and labels (N,), and their box."""
    config = make_config(preset, options)
    data = load(config.data, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(config, Path(folder) / "run")
        network = Training(config, run, data, torch.device("cpu")).fit()
    x, y = Resident(data.test, "cpu", torch.float32, data.box).batch(torch.arange(len(data.test)))
    return network.eval(), x, y, data.box

"""The Moons network, slowed down and keeping count, so that a fault can be aimed and its cost counted.

Worker 0 appends to the file ``$FAULTS_COUNT`` a ``t`` for every training step that it begins, and an ``m`` for
every pass of a large batch outside the training steps, of which the margin pass consists. What is written stays
when the worker is killed.
"""

from __future__ import annotations

import os
import time

import torch.distributed as dist
from torch import Tensor, nn

from ima_dist.models import moons_mlp

_STEP, _PASS = 0.06, 0.03  # seconds
_LARGE = 100  # samples; more than a worker's share of a batch
_FEW = 8  # samples; fewer are a trial at the start of the workers, not a step


def build(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    network = moons_mlp(num_classes, input_shape)
    network.register_forward_pre_hook(_count)
    return network


def _count(network: nn.Module, inputs: tuple[Tensor]) -> None:
    if not dist.is_initialized() or len(inputs[0]) <= (_FEW if network.training else _LARGE):
        return
    if dist.get_rank() == 0:
        with open(os.environ["FAULTS_COUNT"], "a") as file:
            file.write("t" if network.training else "m")
    time.sleep(_STEP if network.training else _PASS)

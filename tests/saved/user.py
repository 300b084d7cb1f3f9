"""The network and the data that the saved runs name. Their names and what they return must stay as they are."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import numpy as np
import torch
from torch import nn


class Small(nn.Sequential):
    """Pauses in every training pass if SAVED_PAUSE (seconds) is set, so that there was time to interrupt a run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(float(os.environ.get("SAVED_PAUSE", "0")))
        return super().forward(x)


def small(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Small(nn.Flatten(), nn.Linear(math.prod(input_shape), 16), nn.Tanh(), nn.Linear(16, num_classes))


def pictures(config: Any, seed: int) -> dict[str, Any]:
    """Grey images of 1×6×6 with a bright upper or lower half, as a dictionary of arrays."""

    def draw(count: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.RandomState([seed, part])
        y = np.arange(count) % 2
        x = generator.randint(0, 120, (count, 1, 6, 6))
        x[y == 0, :, :3] += 100
        x[y == 1, :, 3:] += 100
        return x.astype(np.uint8), y.astype(np.int64)

    parts = {"train": draw(80, 0), "val": draw(20, 1), "test": draw(30, 2)}
    return {**parts, "class_names": ("upper", "lower")}

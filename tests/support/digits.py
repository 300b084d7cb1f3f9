"""Scikit-learn's handwritten digits as a data set of the preset ``own``, and a small network for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

TESTED = 297


def load(config: Any, seed: int, classes: int = 10) -> dict[str, Any]:
    """Images (N, 1, 8, 8) from 0 to 1; the last 297 of the 1797 are for tests, whatever the seed."""
    digits = load_digits(n_class=classes)
    x, y = (digits.images[:, None] / 16).astype(np.float32), digits.target
    return {"train": (x[:-TESTED], y[:-TESTED]), "test": (x[-TESTED:], y[-TESTED:]), "box": (0.0, 1.0)}


def build(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 16, num_classes),
    )  # fmt: skip


def enlarged(config: Any, seed: int, side: int = 32) -> dict[str, Any]:
    """A few of the images, in grey at ``side`` × ``side`` pixels, as large networks need them."""
    found, times = load(config, seed), side // 8
    large = {name: (x.repeat(times, 2).repeat(times, 3)[:64], y[:64]) for name, (x, y) in list(found.items())[:2]}
    return {**large, "box": (0.0, 1.0)}

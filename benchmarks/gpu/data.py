"""Made-up data sets, named by ``data.source``, that a network learns within some steps, so that samples cross.

They need no files and no packages beyond numpy and torch.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from ima_dist.data.types import DataSet, Split
from ima_dist.models import wrn_28_4

#: As many as Fashion-MNIST leaves for training.
FASHION_SAMPLES = 54_000


def moons(config: Any, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two half circles with noise, as scikit-learn's make_moons draws them."""
    generator = np.random.default_rng(seed)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n) % 2
        angle = generator.uniform(0, np.pi, n)
        x = np.stack([np.cos(angle) * (1 - 2 * y) + y, np.sin(angle) * (1 - 2 * y) + 0.5 * y], 1)
        return x + generator.normal(0, 0.06, x.shape), y

    return {"train": draw(4000), "val": draw(200), "test": draw(200)}


def fashion(config: Any, seed: int) -> DataSet:
    """Images of Fashion-MNIST's size, some thousand of them."""
    return _images((1, 28, 28), 4096, seed)


def fashion_full(config: Any, seed: int) -> DataSet:
    """As many images as Fashion-MNIST leaves for training."""
    return _images((1, 28, 28), FASHION_SAMPLES, seed)


def cifar(config: Any, seed: int) -> DataSet:
    """Images of CIFAR-10's size, cropped and flipped at random in training."""
    return _images((3, 32, 32), 2048, seed, augment=True)


def wrn_channels_last(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """WRN-28-4 with weights in the channels-last format, which its convolutions hand on to what they compute."""
    return wrn_28_4(num_classes, input_shape).to(memory_format=torch.channels_last)


def small_network(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """For small sizes: one convolution."""
    channels, height, width = input_shape
    layers = [nn.Conv2d(channels, 4, 4, stride=4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * (height // 4) * (width // 4), num_classes))


@functools.lru_cache(maxsize=1)
def _images(shape: tuple[int, int, int], samples: int, seed: int, augment: bool = False) -> DataSet:
    """Ten blurred templates with noise, uint8."""
    generator = np.random.default_rng(seed)
    channels, height, width = shape
    low = generator.random((10, channels, 4, 4), dtype=np.float32)
    templates = np.kron(low, np.ones((height // 4, width // 4), dtype=np.float32))

    def draw(n: int) -> Split:
        y = np.arange(n) % 10
        pixels = 127 * templates[y] + 40 * generator.standard_normal((n, *shape), dtype=np.float32) + 64
        return Split(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(y))

    train, val, test = (draw(n) for n in (samples, 200, 200))
    return DataSet(train, val, test, box=(0.0, 1.0), num_classes=10, augment=augment)

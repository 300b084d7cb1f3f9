"""Images of 10 × 10 pixels that a small network learns within a few steps, and such networks."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import nn

from ima_dist.core.noise import uniform
from ima_dist.data.types import DataSet, Split

SIDE = 10


def _splits(classes: int, seed: int) -> dict[str, Split]:
    generator = torch.Generator().manual_seed(seed)
    templates = torch.rand(classes, 1, SIDE, SIDE, generator=generator)

    def draw(n: int) -> Split:
        y = torch.arange(n) % classes
        x = (0.7 * templates[y] + 0.3 * torch.rand(n, 1, SIDE, SIDE, generator=generator)) * 255
        return Split(x.to(torch.uint8), y)

    return {"train": draw(96), "val": draw(8), "test": draw(16)}


def four_classes(config: Any, seed: int) -> DataSet:
    return DataSet(**_splits(4, seed), box=(0.0, 1.0), num_classes=4)


def two_classes(config: Any, seed: int) -> DataSet:
    return DataSet(**_splits(2, seed), box=(0.0, 1.0), num_classes=2, class_names=("healthy", "ill"))


def augmented(config: Any, seed: int) -> DataSet:
    return DataSet(**_splits(4, seed), box=(0.0, 1.0), num_classes=4, augment=True)


class Compressed:
    """Images that are compressed one by one, and unpacked when they are fetched: a ``Fetched``."""

    def __init__(self, x: torch.Tensor) -> None:
        self.shape, self.dtype = tuple(x.shape[1:]), x.dtype
        self.contents = [zlib.compress(image.numpy().tobytes()) for image in x]

    def __len__(self) -> int:
        return len(self.contents)

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        unpacked = b"".join(zlib.decompress(self.contents[row]) for row in rows.tolist())
        return torch.frombuffer(bytearray(unpacked), dtype=self.dtype).view(len(rows), *self.shape)


def compressed(config: Any, seed: int) -> DataSet:
    splits = {name: Split(Compressed(split.x), split.y) for name, split in _splits(4, seed).items()}
    return DataSet(**splits, box=(0.0, 1.0), num_classes=4)


def shaken(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """An augmentation of one's own: brighter or darker by up to a tenth."""
    return x + 0.1 * (2 * uniform(keys, (1, 1, 1), x.dtype) - 1)


def cnn(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return _network(num_classes, nn.Identity())


def batch_norm_cnn(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return _network(num_classes, nn.BatchNorm2d(4))


def of_any_size(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """In place of a network that takes a second per image."""
    return _pooled(num_classes, input_shape, nn.Identity())


def of_any_size_batch_norm(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return _pooled(num_classes, input_shape, nn.BatchNorm2d(8))


def _pooled(num_classes: int, input_shape: tuple[int, ...], norm: nn.Module) -> nn.Module:
    layers = [nn.AdaptiveAvgPool2d(8), nn.Conv2d(input_shape[0], 8, 3), norm, nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 6 * 6, num_classes))


def _network(num_classes: int, norm: nn.Module) -> nn.Module:
    pooled = 4 * (SIDE // 2) ** 2
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(pooled, num_classes)
    )

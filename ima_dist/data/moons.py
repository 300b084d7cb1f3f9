"""The Moons data set: two interleaved half circles in the plane (paper, section 3.1)."""

import numpy as np
import torch

from ima_dist.config.schema import DataConfig
from ima_dist.data.types import DataSet, Split

_SIZES = (20000, 2000, 2000)


def load(config: DataConfig, seed: int) -> DataSet:
    """20000 training, 2000 validation and 2000 test points: x (N, 2) float64 in raw coordinates, no box.

    ``config.noise`` is the standard deviation of the noise; the paper does not give its value.
    """
    train, val, test = (_points(n, config.noise, seed, part) for part, n in enumerate(_SIZES))
    return DataSet(train=train, val=val, test=test, box=None, num_classes=2)


def _points(n: int, noise: float, seed: int, part: int) -> Split:
    """As ``sklearn.datasets.make_moons`` makes them, to the bit; importing that takes longer than a short training."""
    # RandomState's stream is frozen across numpy versions, and a pair as its seed cannot overflow.
    generator = np.random.RandomState([seed, part])
    outer, inner = np.linspace(0, np.pi, n // 2), np.linspace(0, np.pi, n - n // 2)
    x = np.stack(
        [np.append(np.cos(outer), 1 - np.cos(inner)), np.append(np.sin(outer), 1 - np.sin(inner) - 0.5)], axis=1
    )
    y = np.repeat([0, 1], [len(outer), len(inner)])
    order = np.arange(n)
    generator.shuffle(order)
    x, y = x[order], y[order]
    if noise:
        x += generator.normal(scale=noise, size=x.shape)
    return Split(torch.from_numpy(x), torch.from_numpy(y))

"""Networks that make numbers wrong in silence, one kind each, with honest ones like them; and small data for them."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ima_dist.config.presets import make_config
from ima_dist.data.types import DataSet, Split

CLASSES, SHAPE = 3, (1, 8, 8)


def images(samples=96, dtype=torch.float32, scale=1.0):
    """Images with a black frame, whose class is the brightness of the middle."""
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        y = torch.arange(n) % CLASSES
        x = torch.zeros(n, *SHAPE)
        x[:, 0, 2:6, 2:6] = 0.3 + 0.2 * y[:, None, None] + 0.05 * torch.rand(n, 4, 4, generator=generator)
        return Split((x * scale).to(dtype), y)

    box = (0.0, 1.0) if scale == 1.0 or dtype == torch.uint8 else None
    return DataSet(draw(samples), draw(12), draw(30), box=box, num_classes=CLASSES)


def loaded(config, seed):
    return images()


def settings(factory, **options):
    """A configuration for the network that the function ``factory`` of this module builds."""
    functions = {"data.source": f"{__name__}:loaded", "model.factory": f"{__name__}:{factory}"}
    return make_config("moons", {**functions, "device": "cpu", **options})


class _Straight(torch.autograd.Function):
    """Rounds, and hands the gradient through as if it did not."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 16) / 16

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Times(nn.Module):
    """Multiplies what it is given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class _Inside(nn.Module):
    """A small honest network, to be called by a hostile one."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, CLASSES))

    def forward(self, x):
        return self.inner(x)


def network(forward):
    """A factory of networks that compute forward(inner network, x), where ``inner.training`` is the mode."""

    class Network(_Inside):
        def forward(self, x):
            return forward(self.inner, x)

    return lambda num_classes, input_shape: Network()


honest = network(lambda inner, x: inner(x))
honest_root = network(lambda inner, x: inner((x.clamp(0, 1) + 0.01).sqrt()))


def _steep(inner, x):
    return inner(torch.sigmoid(1e5 * (x - 0.4)))


def _resized(inner, x):
    size = random.randint(5, 8)
    return inner(F.pad(F.interpolate(x, (size, size)), (0, 8 - size, 0, 8 - size)))


def _pixelwise(inner, x):
    x -= 0.5
    return inner(x)


def _named(inner, x):
    return {"logits": inner(x)}


masked = network(lambda inner, x: inner(x).masked_fill(torch.arange(CLASSES) == 2, -torch.inf))
misled = network(lambda inner, x: inner(x.detach()) + 0.01 * inner[1](x.flatten(1) ** 2)[:, :CLASSES])
rounded = network(lambda inner, x: inner(torch.round(x * 16) / 16))
steep = network(_steep)
resized = network(_resized)
straight_through = network(lambda inner, x: inner(_Straight.apply(x)))
detached = network(lambda inner, x: inner((x * 16).int().to(x.dtype) / 16))
in_place = network(_pixelwise)
pair = network(lambda inner, x: (inner(x), x))
pair_in_training = network(lambda inner, x: (inner(x), x) if inner.training else inner(x))
mapping = network(_named)
dropping = network(lambda inner, x: inner(F.dropout(x, 0.5)))
centred = network(lambda inner, x: inner(x - x.mean(0)))
sorted_by_place = network(lambda inner, x: inner(x + torch.arange(len(x)).view(-1, 1, 1, 1)))
softmaxed = network(lambda inner, x: inner(x).softmax(1))
# Between 0 and 1 before the training, though nothing keeps it there.
by_chance = network(lambda inner, x: inner(x) / 4 + 0.5)
squashed = network(lambda inner, x: inner(x).sigmoid())
one_output = network(lambda inner, x: inner(x)[:, :1])
single_precision = network(lambda inner, x: inner(x).float())
root = network(lambda inner, x: inner(torch.where(x > 0, x.sqrt(), torch.zeros_like(x))))
logarithm = network(lambda inner, x: inner((x + 0.1).log()))
overflowing = network(lambda inner, x: inner(x) * float("inf"))


def lazy(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(num_classes))


def by_numpy(num_classes, input_shape):
    """Weights drawn from NumPy's and Python's generators."""
    linear = nn.Linear(64, num_classes)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(np.random.randn(num_classes, 64)))
        linear.bias.fill_(random.random())
    return nn.Sequential(nn.Flatten(), linear)


def unseeded(num_classes, input_shape):
    linear = nn.Linear(64, num_classes)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(np.random.default_rng().normal(size=(num_classes, 64))))
    return nn.Sequential(nn.Flatten(), linear)


def batch_norm(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


def of_the_batch(num_classes, input_shape):
    """Batch statistics in evaluation mode, too; a single image has several values for each channel."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))


def of_the_batch_flat(num_classes, input_shape):
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm, nn.ReLU(), nn.Linear(8, num_classes))


class _Counting(_Inside):
    """Counts its passes in every mode, in a buffer that the answer depends on later."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.inner(x)


def counting(num_classes, input_shape):
    return _Counting()


class _Unlisted(nn.Module):
    """Layers in a plain list, where torch does not find them."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Flatten(), nn.Linear(64, CLASSES)]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def unlisted(num_classes, input_shape):
    return _Unlisted()


def unused_parameter(num_classes, input_shape):
    made = _Inside()
    made.spare = nn.Linear(2, 2)
    return made


def sparse_buffer(num_classes, input_shape):
    made = _Inside()
    made.register_buffer("mask", torch.eye(3).to_sparse())
    return made

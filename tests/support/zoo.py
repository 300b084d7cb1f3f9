"""Networks as people write them: small, and each unusual in one way. ``NETWORKS`` has the factories by name."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

CLASSES, FEATURES, HIDDEN = 2, 2, 12


class Net(nn.Module):
    """An ordinary network with one hidden layer, whose hidden values ``middle`` may change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.last = nn.Linear(HIDDEN, CLASSES)
        self.build()

    def build(self) -> None:
        """Add what the network needs."""

    def middle(self, h):
        return h

    def forward(self, x):
        return self.last(self.middle(torch.tanh(self.first(x))))


class SlicedBuffer(Net):
    def build(self):
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 5 * HIDDEN).view(5, HIDDEN)[2])

    def middle(self, h):
        return h * self.scale


class ExpandedBuffer(Net):
    def build(self):
        self.register_buffer("scale", torch.full((1,), 0.7).expand(HIDDEN))
        self.register_buffer("turned", torch.eye(HIDDEN).t()[:, ::2].repeat_interleave(2, 1))

    def middle(self, h):
        return h * self.scale + h @ self.turned


class SlicedParameter(Net):
    def build(self):
        both = torch.randn(2, HIDDEN) / 4
        self.one, self.two = nn.Parameter(both[0]), nn.Parameter(both[1])

    def middle(self, h):
        return h * (1 + self.one) + self.two


class UnusedParameter(Net):
    def build(self):
        self.spare = nn.Linear(3, 3)


class UsedNowAndThen(Net):
    """A layer that is skipped as Python's generator says, and one that only training uses."""

    def build(self):
        self.skipped, self.trained = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def middle(self, h):
        if not self.training:
            return h
        h = h + 0.1 * self.trained(h)
        return h if random.random() < 0.5 else h + 0.1 * self.skipped(h)


class Frozen(Net):
    def build(self):
        self.first.requires_grad_(False)


class Tied(Net):
    def build(self):
        self.inner, self.again = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.again.weight = self.inner.weight

    def middle(self, h):
        return torch.tanh(self.again(torch.tanh(self.inner(h))))


class Dropout(Net):
    def middle(self, h):
        return F.dropout(h, 0.3, self.training)


class RandomDepth(Net):
    """Noise from Python's and NumPy's generators in training."""

    def middle(self, h):
        return h * (1 + 0.1 * random.gauss(0, 1) + 0.1 * float(np.random.randn())) if self.training else h


class FrozenBatchNorm(Net):
    """Batch norm in evaluation mode, as the factory leaves it."""

    def build(self):
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.requires_grad_(False).eval()

    def middle(self, h):
        return self.norm(h)


class BatchNormFrozenByTrain(FrozenBatchNorm):
    """Batch norm that an overridden train() keeps in evaluation mode."""

    def build(self):
        super().build()
        self.norm.train()

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


class SilencedDropout(Net):
    def build(self):
        self.drop = nn.Dropout(0.5).eval()

    def middle(self, h):
        return self.drop(h)


class BatchNorm(Net):
    def build(self):
        self.norm = nn.BatchNorm1d(HIDDEN, momentum=None)

    def middle(self, h):
        return self.norm(h)


class OwnStatistics(Net):
    """A running mean of one's own, assigned anew in every pass, a complex one, and a counter."""

    def build(self):
        self.register_buffer("mean", torch.zeros(HIDDEN))
        self.register_buffer("turn", torch.zeros(HIDDEN, dtype=torch.complex64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def middle(self, h):
        h = h - self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
            self.steps += 1
        return h


class HalfBuffer(Net):
    def build(self):
        self.register_buffer("scale", torch.linspace(0.5, 1.5, HIDDEN).bfloat16())
        self.register_buffer("order", torch.arange(HIDDEN).flip(0))
        self.register_buffer("mask", torch.arange(HIDDEN) != 3)
        self.register_buffer("passing", torch.linspace(1, 2, HIDDEN), persistent=False)

    def middle(self, h):
        return (h * self.scale)[:, self.order] * self.mask * self.passing


class ComplexBuffer(Net):
    """Multiplies by a complex number's real part of the square, which needs the imaginary part."""

    def build(self):
        self.register_buffer("wave", torch.polar(torch.ones(HIDDEN), torch.linspace(0, 0.6, HIDDEN)), persistent=False)

    def middle(self, h):
        return h * (self.wave * self.wave).real


class Weighted(Net):
    def build(self):
        self.first = parametrizations.weight_norm(self.first)
        self.last = weight_norm(self.last)


class Spectral(Net):
    def build(self):
        self.first = parametrizations.spectral_norm(self.first)
        self.last = spectral_norm(self.last)


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).t()


class Parametrized(Net):
    def build(self):
        self.inner = nn.Linear(HIDDEN, HIDDEN)
        parametrize.register_parametrization(self.inner, "weight", Symmetric())

    def middle(self, h):
        return self.inner(h)


class Empty(Net):
    def build(self):
        self.nothing = nn.Parameter(torch.zeros(0))

    def middle(self, h):
        return torch.cat([h, self.nothing.expand(len(h), 0)], 1)


class Listed(Net):
    def build(self):
        self.layers = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(2)])
        self.by_name = nn.ModuleDict({"end": nn.LayerNorm(HIDDEN)})
        self.free = nn.ParameterList([torch.ones(HIDDEN)])

    def middle(self, h):
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return self.by_name["end"](h) * self.free[0]


class Checkpointed(Net):
    """Activations of a dropout that are computed again in the backward pass, with the same mask."""

    def build(self):
        self.inner = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Dropout(0.2))

    def middle(self, h):
        return torch.utils.checkpoint.checkpoint(self.inner, h, use_reentrant=False)


class Lazy(Net):
    def build(self):
        self.inner = nn.LazyLinear(HIDDEN)

    def middle(self, h):
        return self.inner(h)


class Recurrent(Net):
    def build(self):
        self.inner = nn.GRU(3, 3, batch_first=True)

    def middle(self, h):
        return self.inner(h.view(-1, HIDDEN // 3, 3))[0].flatten(1)


def compiled():
    return torch.compile(Dropout(), backend="eager")


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)))


NETWORKS = {
    kind.__name__: kind
    for kind in (
        *(SlicedBuffer, ExpandedBuffer, SlicedParameter, UnusedParameter, UsedNowAndThen, Frozen, Tied, Dropout),
        *(RandomDepth, FrozenBatchNorm, BatchNormFrozenByTrain, SilencedDropout, BatchNorm, OwnStatistics, HalfBuffer),
        *(ComplexBuffer, Weighted, Spectral, Parametrized, Empty, Listed, Checkpointed, Lazy, Recurrent),
        *(compiled, scripted),
    )
}
#: Those whose results depend on how batches are split: they draw random numbers, or use statistics of the share.
SPLIT = {"UsedNowAndThen", "Dropout", "RandomDepth", "BatchNorm", "Checkpointed", "compiled"}


def build(num_classes, input_shape, name):
    return NETWORKS[name]()


# ---- networks that are refused


class Overlapping(Net):
    def build(self):
        self.register_buffer("all", torch.ones(2 * HIDDEN))
        self.register_buffer("part", self.all[:HIDDEN])


class HiddenState(Net):
    """A running mean in a plain attribute, which no checkpoint holds."""

    def build(self):
        self.mean = torch.zeros(HIDDEN)

    def middle(self, h):
        h = h - self.mean.to(h.dtype)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h


class UnsavedState(OwnStatistics):
    def build(self):
        self.register_buffer("mean", torch.zeros(HIDDEN), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class OwnGenerator(Net):
    """Dropout from a generator of its own, which goes on from where it was."""

    def build(self):
        self.generator = torch.Generator().manual_seed(0)

    def middle(self, h):
        return h * (torch.rand(h.shape, generator=self.generator) > 0.3) if self.training else h


class Graph(OwnStatistics):
    """Forgets detach(): the second step goes back through the first."""

    def middle(self, h):
        h = h - self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.mean(0)
        return h


class Counted(Net):
    """Counts samples, of which each worker has its own."""

    def build(self):
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def middle(self, h):
        self.seen += len(h) * self.training
        return h


class Spread(Net):
    """A running standard deviation: that of a whole batch is not the mean of its parts'."""

    def build(self):
        self.register_buffer("spread", torch.ones(HIDDEN))

    def middle(self, h):
        if self.training:
            self.spread = 0.5 * self.spread + 0.5 * h.detach().std(0)
        return h / self.spread


REFUSED = {k.__name__: k for k in (Overlapping, HiddenState, UnsavedState, OwnGenerator, Graph, Counted, Spread)}


def build_refused(num_classes, input_shape, name):
    return REFUSED[name]()


class Imaginary(Net):
    def build(self):
        self.turn = nn.Parameter(torch.ones(HIDDEN, dtype=torch.complex64))

    def middle(self, h):
        return (h * self.turn).real


REFUSED["Imaginary"] = Imaginary


def build_in_evaluation_mode(num_classes, input_shape, name):
    return NETWORKS[name]().eval()

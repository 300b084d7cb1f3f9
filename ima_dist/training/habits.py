"""What users' networks do in training mode, which several workers must know of, and their random numbers."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ima_dist.attacks.common import cross_entropy
from ima_dist.core import distributed
from ima_dist.training.network import seeded

# Passes with other random numbers and other samples: what a pass uses or changes may depend on both.
_PASSES = 4


def moving_buffers(network: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[str, ...]:
    """Names of the buffers that a pass in training mode changes.

    Passes samples (B, ...) with labels (B,) through the network, which is left as it was, forward and backward.
    """
    moving: set[str] = set()
    half = len(x) // 2
    pieces = [slice(None), slice(half), slice(half, None), slice(None)] if len(x) >= 4 else [slice(None)] * _PASSES
    for number, piece in enumerate(pieces):
        with undisturbed(network) as before, seeded(seed + number):
            network.zero_grad(set_to_none=True)
            cross_entropy(network(x[piece]), y[piece]).sum().backward()
            moving |= {name for name, tensor in network.named_buffers() if not same(tensor, before[name])}
            network.zero_grad(set_to_none=True)
    return tuple(sorted(moving))


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Afterwards all buffers, whether saved or not, have the values from before, which the block may read by name."""
    held = [(m, key, t) for m in network.modules() for key, t in m._buffers.items() if t is not None]
    values = [t.detach().clone() for _, _, t in held]
    try:
        yield {name: t.detach().clone() for name, t in network.named_buffers()}
    finally:
        for (module, key, tensor), value in zip(held, values, strict=True):
            with torch.no_grad():
                tensor.copy_(value)
            if getattr(module, key) is not tensor:
                setattr(module, key, tensor)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal, where NaN equals NaN."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def agree(network: nn.Module, names: tuple[str, ...], weight: int, all_have_samples: bool) -> None:
    """Give the buffers ``names`` the same values on all workers: the mean over the samples. Collective.

    Whole numbers (counters) count alike on every worker that has samples; they are compared only if one has none.

    Args:
        weight: the number of rows that this worker has passed through the network.
        all_have_samples: no worker's share of this batch is empty.
    """
    buffers = [network.get_buffer(name) for name in names]
    by_kind: dict[torch.dtype, list[Tensor]] = {}
    for buffer in buffers:
        if buffer.is_complex() or buffer.is_floating_point() or not all_have_samples:
            by_kind.setdefault(buffer.dtype, []).append(buffer)
    for kind, tensors in by_kind.items():
        if kind.is_complex:
            distributed.average_([torch.view_as_real(t) for t in tensors], weight)
        elif kind.is_floating_point:
            distributed.average_(tensors, weight)
        else:
            means = [t.double() for t in tensors]
            distributed.average_(means, weight)
            for tensor, mean in zip(tensors, means, strict=True):
                tensor.copy_(mean.round())


class StepGenerators:
    """Seeds torch's, NumPy's and Python's generators, so that what a network draws does not depend on interruptions.

    The key is (seed, epoch, number of the step, rank): the masks of dropout are drawn for a worker's whole share of a
    batch, so they do depend on the number of workers. It costs some microseconds, and no sync on a GPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def start(self, epoch: int, step: int) -> None:
        """Begin a step, or with a negative number the pass over the margins."""
        parts = repr((self.seed, epoch, step, distributed.rank())).encode()
        key = int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "big") >> 1
        # Not torch.manual_seed, which costs a hundred times as much where it finds no card.
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)
        np.random.seed(key & 0xFFFFFFFF)
        random.seed(key)

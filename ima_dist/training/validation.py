"""Accuracy on the validation set after an epoch, in full precision."""

import sys
from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor, nn

from ima_dist.attacks import worst
from ima_dist.attacks.common import attack_mode, predicted
from ima_dist.config.schema import Config
from ima_dist.core import distributed, noise
from ima_dist.data.batch_sizes import attack_batch_size
from ima_dist.data.types import Samples, Taken


def accuracy(network: nn.Module, data: Samples, config: Config, at_once: int = sys.maxsize) -> float | None:
    """Share of correctly classified samples, over all workers; None for an empty split. Collective."""

    def correct(batch: Taken) -> Tensor:
        _, x, y = batch
        return (predicted(network(x)) == y).sum()

    with torch.no_grad(), attack_mode(network):
        return _share(correct, torch.arange(len(data)), data, config, at_once)


def robust_accuracy(
    network: nn.Module, data: Samples, samples: Tensor, config: Config, eps: float, at_once: int = sys.maxsize
) -> float | None:
    """Share of the samples at the indices ``samples`` (M,) that stay correct under a short ``worst`` of radius ``eps``.

    Over all workers; None if M = 0. Collective.
    """
    settings = config.eval

    def correct(batch: Taken) -> Tensor:
        indices, x, y = batch
        keys = noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, indices)
        predictions, _ = worst(
            network,
            x,
            y,
            [eps],
            norm=config.norm,
            steps=settings.val_steps,
            step_scale=settings.step_scale,
            rivals=0,
            start=lambda eps: noise.start(keys, x, eps, config.norm),
            box=data.box,
        )
        return (predictions[0] == y).sum()

    return _share(correct, samples, data, config, at_once)


def _share(
    correct: Callable[[Taken], Tensor], samples: Tensor, data: Samples, config: Config, at_once: int
) -> float | None:
    """The share of ``samples`` that ``correct`` counts, each worker looking at its block of them.

    at_once: the most samples that fit into this worker's memory.
    """
    total = len(samples)
    if not total:
        return None
    count = torch.zeros((), dtype=torch.int64, device=data.y.device)
    first, last = distributed.block(total, distributed.rank(), distributed.world_size())
    if first < last:  # some networks cannot take an empty batch
        parts = samples[first:last].split(min(attack_batch_size(config.batch_size, data.shape), at_once))
        with closing(data.batches(parts)) as batches:
            for batch in batches:
                count += correct(batch)
    return int(distributed.all_reduce(count)) / total

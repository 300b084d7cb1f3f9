"""Choosing samples: class-balanced subsets and held-out sets."""

import torch

from ima_dist.core.noise import mix64
from ima_dist.data.types import PARTS, Split


def choose_balanced(y: torch.Tensor, quotas: list[int], seed: int, stream: int) -> torch.Tensor:
    """Ascending indices of ``quotas[c]`` samples of each class c (all of them if a class has fewer).

    y: (N,) int64 labels. The choice depends only on (seed, stream) and the indices: samples with the smallest keyed
    hash are taken, so a smaller quota gives a subset of a larger one's choice.
    """
    key = mix64(mix64(torch.tensor(seed) + 1) + stream)
    chosen = []
    for c, quota in enumerate(quotas):
        members = (y == c).nonzero().squeeze(1)
        chosen.append(members[mix64(mix64(members) + key).argsort()[:quota]])
    return torch.cat(chosen).sort().values


def hold_out(split: Split, count: int, num_classes: int, seed: int) -> tuple[Split, Split]:
    """Split off a class-balanced validation set of ``count`` samples; returns (training, validation).

    Both keep the original order and share the storage of ``split``. No class gives up more than half of its samples,
    so the validation set of a very small or unbalanced set may have fewer than ``count``.
    """
    available = torch.bincount(split.y, minlength=num_classes).tolist()
    quotas = [min(q, a // 2) for q, a in zip(class_quotas(count, num_classes), available, strict=True)]
    held = choose_balanced(split.y, quotas, seed, stream=len(PARTS))
    rest = torch.ones(len(split), dtype=torch.bool)
    rest[held] = False
    return split.view(rest.nonzero().squeeze(1)), split.view(held)


def class_quotas(count: int, num_classes: int) -> list[int]:
    """``count`` divided as evenly as possible among the classes."""
    share, rest = divmod(count, num_classes)
    return [share + (c < rest) for c in range(num_classes)]

"""Choosing samples: class-balanced subsets, held-out sets, and samples to attack."""

import heapq

import numpy as np
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


def to_attack(split: Split, count: int | None, order: str) -> torch.Tensor:
    """Ascending indices (M,) int64 of the samples of ``split`` to attack, M = min(count, N); all if count is None.

    order: "first" takes the first ones. "stratified" takes each class in proportion to its size, at least one sample
    of each if ``count`` allows it. The choice depends only on the split, and contains that of every smaller count.
    """
    total = len(split)
    if order == "first" or count is None or count >= total:
        return torch.arange(total if count is None else min(count, total))
    y = split.y.numpy()
    keyed = mix64(mix64(torch.arange(total)) + int.from_bytes(bytes.fromhex(split.digest()), signed=True)).numpy()
    in_classes = np.lexsort((keyed, y))
    sizes = np.bincount(y)
    turn = np.empty(total, dtype=np.int64)  # place within the class
    turn[in_classes] = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Sainte-Laguë's method: turn t of a class of n samples is at (t + 1/2) / n. The first turns come before all others.
    ranking = np.lexsort((keyed, (turn + 0.5) / sizes[y], turn > 0))
    return torch.from_numpy(np.sort(ranking[:count]))


def class_quotas(count: int, num_classes: int) -> list[int]:
    """``count`` divided as evenly as possible among the classes."""
    share, rest = divmod(count, num_classes)
    return [share + (c < rest) for c in range(num_classes)]


def quotas_in_proportion(sizes: list[int], count: int) -> list[int]:
    """``count`` divided in proportion to the sizes of the classes, at least one for each that has samples.

    Sainte-Laguë's method, as in ``to_attack``. ``count``: at least the number of classes, at most the sum of ``sizes``.
    """
    quotas = [min(size, 1) for size in sizes]
    turns = [
        ((quota + 0.5) / size, c) for c, (size, quota) in enumerate(zip(sizes, quotas, strict=True)) if size > quota
    ]
    heapq.heapify(turns)
    for _ in range(count - sum(quotas)):
        _, c = turns[0]
        quotas[c] += 1
        if quotas[c] < sizes[c]:
            heapq.heapreplace(turns, ((quotas[c] + 0.5) / sizes[c], c))
        else:
            heapq.heappop(turns)
    return quotas

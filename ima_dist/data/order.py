"""The order of an epoch: a permutation keyed by (seed, epoch), computed for each index and never stored.

Any worker can compute any part of the order, so neither the number of workers nor an interruption changes which
samples are in a global batch.
"""

from collections.abc import Iterator

import torch

from ima_dist.core.noise import Phase, mix64, sample_keys

# Positions that ``batches`` permutes at once: one call per batch would cost more than a step of a small network.
_BLOCK = 2**16


def shuffled(positions: torch.Tensor, n: int, seed: int, epoch: int) -> torch.Tensor:
    """The sample indices at ``positions`` in the order of this epoch.

    A bijection of range(n): a balanced Feistel network (Luby & Rackoff 1988) on the smallest domain of an
    even number of bits that holds n, repeated while the result lies outside range(n) ("cycle walking",
    Black & Rogaway 2002).

    positions: int64 CPU tensor of any shape, values in [0, n). Returns a tensor of the same shape.
    Raises ValueError for a position outside [0, n).
    """
    if positions.numel() == 0:
        return positions.clone()
    if positions.min() < 0 or positions.max() >= n:
        raise ValueError(f"positions must lie in [0, {n})")
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    # A round function with few outputs mixes little, so a small domain needs more rounds to look uniform.
    rounds = 8 if half_bits > 4 else 16
    keys = sample_keys(seed, epoch, Phase.ORDER, torch.arange(rounds))
    result = _feistel(positions, half_bits, keys)
    outside = result >= n
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= n
    return result


def _feistel(x: torch.Tensor, half_bits: int, keys: torch.Tensor) -> torch.Tensor:
    mask = (1 << half_bits) - 1
    left, right = x >> half_bits, x & mask
    for key in keys:
        left, right = right, left ^ (mix64(right + key) & mask)
    return left << half_bits | right


def batches(n: int, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[torch.Tensor]:
    """The epoch's global batches from batch number ``start`` on, as int64 tensors of sample indices.

    Every index of range(n) is in exactly one batch; all batches have ``batch_size`` indices except the last, which
    may be smaller. Starting at ``start`` gives the same batches as skipping that many.
    """
    per_block = max(1, _BLOCK // batch_size) * batch_size
    for first in range(start * batch_size, n, per_block):
        block = shuffled(torch.arange(first, min(first + per_block, n)), n, seed, epoch)
        yield from block.split(batch_size)

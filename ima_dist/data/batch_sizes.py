"""How many samples are attacked or classified at once where nothing is trained on them."""

import math

from ima_dist.data.types import Samples

# An interrupted evaluation loses its batch. On a CPU more than 64 samples gain little unless they are tiny.
_CPU_VALUES = 1 << 16


def attack_batch_size(batch_size: int, shape: tuple[int, ...]) -> int:
    """Samples of ``shape`` in a batch of the margin pass or the validation.

    Tiny samples go by the ten thousand, because a small network spends its time launching operations. It depends on
    nothing else, so that all workers take the same number of turns, before and after a resume. ``batch_size`` is the
    global one: what a worker's card has no memory for is cut further (``attacks.memory``).
    """
    return max(4 * batch_size, (1 << 17) // max(math.prod(shape), 1))


def evaluation_batch_size(batch_size: int, data: Samples) -> int:
    """Samples in a batch of an evaluation or audit of ``data``."""
    largest = attack_batch_size(batch_size, data.shape)
    if data.y.device.type != "cpu":
        return largest
    return min(largest, max(64, _CPU_VALUES // max(math.prod(data.shape), 1)))

"""The order of an epoch is a permutation that looks random, depends on its keys only, and can be resumed."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import pytest
import torch

from ima_dist.data.order import batches, shuffled


def order(n: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return shuffled(torch.arange(n), n, seed, epoch)


def deviation(counts: torch.Tensor) -> float:
    """Chi-square of counts against equal ones, in standard deviations from its mean."""
    expected = counts.double().mean()
    freedom = counts.numel() - 1
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    return (chi_square - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("sizes", [range(1, 301), [4096, 55000, 65536, 65537]], ids=["small", "large"])
def test_every_index_stands_once_in_the_order(sizes: Iterable[int]) -> None:
    for n in sizes:
        assert torch.equal(order(n, seed=3, epoch=5).sort().values, torch.arange(n)), n


def test_order_depends_on_seed_and_epoch_only() -> None:
    assert torch.equal(order(1000, 1, 2), order(1000, 1, 2))
    orders = [order(1000, seed, epoch) for seed in range(4) for epoch in range(4)]
    for a, b in itertools.combinations(orders, 2):
        # Two random orders agree in one place on average.
        assert (a == b).sum() < 12


def test_order_of_any_positions_is_part_of_the_whole() -> None:
    positions = torch.tensor([[17, 3], [999, 0]])
    assert torch.equal(shuffled(positions, 1000, 4, 1), order(1000, 4, 1)[positions])
    assert shuffled(torch.arange(0), 1000, 4, 1).numel() == 0


@pytest.mark.parametrize("position", [-1, 10])
def test_position_outside_the_range_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        shuffled(torch.tensor([position]), 10, 0, 0)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_orders_of_few_samples_are_equally_frequent(n: int) -> None:
    seen = Counter(tuple(order(n, epoch=epoch).tolist()) for epoch in range(1000))
    assert len(seen) == math.factorial(n)
    assert deviation(torch.tensor(list(seen.values()))) < 6


@pytest.mark.parametrize("n", [5, 17, 100, 300])
def test_index_says_nothing_about_its_position_or_its_neighbour(n: int) -> None:
    at = torch.zeros(n, n)
    steps = torch.zeros(n, dtype=torch.int64)
    for epoch in range(200):
        indices = order(n, epoch=epoch)
        at[torch.arange(n), indices] += 1
        pairs = indices[: n // 2 * 2].view(-1, 2)
        steps += torch.bincount((pairs[:, 1] - pairs[:, 0]) % n, minlength=n)
    assert abs(deviation(at)) < 6
    assert steps[0] == 0
    assert abs(deviation(steps[1:])) < 6


def test_batch_of_a_large_set_is_spread_over_it() -> None:
    first = order(55000, seed=9)[:5500]
    assert abs(deviation(torch.bincount(first * 10 // 55000, minlength=10))) < 6
    assert abs(deviation(torch.bincount(first % 10, minlength=10))) < 6


@pytest.mark.parametrize(
    ("n", "batch_size"), [(1, 128), (10, 3), (256, 128), (1000, 128), (70000, 128), (70000, 69999)]
)
def test_batches_cover_the_epoch_once(n: int, batch_size: int) -> None:
    parts = list(batches(n, batch_size, 1, 2))
    assert [len(p) for p in parts[:-1]] == [batch_size] * (math.ceil(n / batch_size) - 1)
    assert 1 <= len(parts[-1]) <= batch_size
    assert torch.equal(torch.cat(parts), order(n, 1, 2))


@pytest.mark.parametrize("start", [0, 1, 511, 512, 546, 547])
def test_resumed_batches_equal_the_tail_of_the_whole_epoch(start: int) -> None:
    # 70000 samples in batches of 128 are 547 batches, more than one block.
    whole = list(batches(70000, 128, 5, 0))
    tail = list(batches(70000, 128, 5, 0, start=start))
    assert len(whole) == 547
    assert len(tail) == 547 - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], tail, strict=True))

"""Times as ratios: interleaved pairs, the passes through a network, and the same passes with nothing around them."""

from __future__ import annotations

import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ima_dist.attacks.common import attack_mode

#: What a pass computes: logits, or also the gradient of the input or of the parameters; and its samples.
Pass = tuple[str, int]
FORWARD, INPUT, WEIGHTS = "forward", "input", "weights"
# Floating-point operations, in forward passes: each gradient costs about as much as the pass itself.
_COST = {FORWARD: 1, INPUT: 2, WEIGHTS: 3}


def clock() -> float:
    """Seconds: of the processor if torch has one thread, which a busy machine alters least, else of the clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = clock()
    function()
    return clock() - began


class Pairs(NamedTuple):
    """Median seconds of two functions; median, smallest and largest of the ratios first / second of neighbours."""

    first: float
    second: float
    ratio: float
    lowest: float
    highest: float

    def rounded(self) -> dict[str, float]:
        return {name: float(f"{value:.4g}") for name, value in self._asdict().items()}


def interleaved(first: Callable[[], Any], second: Callable[[], Any], pairs: int, warm: bool = True) -> Pairs:
    """Time both in the order A B A B …, so that whatever else the machine does meets both; ``warm``: once before."""
    if warm:
        first(), second()
    return summary([(seconds(first), seconds(second)) for _ in range(pairs)])


def summary(times: Sequence[tuple[float, float]]) -> Pairs:
    """``Pairs`` of the seconds of neighbours."""
    ratios = [a / b for a, b in times]
    firsts, seconds_ = zip(*times, strict=True)
    return Pairs(
        statistics.median(firsts), statistics.median(seconds_), statistics.median(ratios), min(ratios), max(ratios)
    )


@contextmanager
def recorded(network: nn.Module) -> Iterator[list[Pass]]:
    """The passes through ``network`` inside the block, in order, whoever makes them."""
    passes: list[Pass] = []

    def with_gradient(number: int, kind: str, _: Tensor) -> None:
        passes[number] = (kind, passes[number][1])

    def note(_: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> None:
        passes.append((FORWARD, len(logits)))
        if logits.requires_grad:
            kind = INPUT if given[0].requires_grad else WEIGHTS
            logits.register_hook(functools.partial(with_gradient, len(passes) - 1, kind))

    handle = network.register_forward_hook(note)
    try:
        yield passes
    finally:
        handle.remove()


# Sizes of batches whose bare passes are timed; the cost of others lies on the straight line between.
_SIZES = (1, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


class Bare:
    """What passes cost with nothing between them but the network and autograd, on random samples of this shape."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], largest: int) -> None:
        self._network = network
        self._sizes = [n for n in _SIZES if n < largest] + [largest]
        dtype = next(network.parameters()).dtype
        self._x = torch.rand(largest, *shape, dtype=dtype)
        with torch.no_grad(), attack_mode(network):
            self._ones = torch.ones_like(network(self._x))
        self._found: dict[Pass, list[float]] = {}

    def time(self, repeats: int) -> None:
        """Time each kind of pass at each size once more: the median of ``repeats`` calls."""
        for kind in _COST:
            with nullcontext() if kind == WEIGHTS else attack_mode(self._network):
                for n in self._sizes:
                    run = functools.partial(self._run, kind, n)
                    median = statistics.median(seconds(run) for _ in range(repeats))
                    self._found.setdefault((kind, n), []).append(median)

    def total(self, passes: Sequence[Pass]) -> float:
        """Seconds of ``passes``, from the medians of what was timed."""
        costs = {kind: [statistics.median(self._found[kind, n]) for n in self._sizes] for kind in _COST}
        made = Counter(passes)
        return float(sum(count * np.interp(n, self._sizes, costs[kind]) for (kind, n), count in made.items()))

    def _run(self, kind: str, n: int) -> None:
        network, x = self._network, self._x[:n]
        if kind == FORWARD:
            with torch.no_grad():
                network(x)
            return
        wanted: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        if kind == INPUT:
            x = x.detach().requires_grad_()
            wanted = [x]
        torch.autograd.grad(network(x), wanted, self._ones[:n], allow_unused=True)


def counts(passes: Sequence[Pass]) -> dict[str, int]:
    """The number of passes, and the samples in those of each kind."""
    samples: Counter[str] = Counter()
    for kind, n in passes:
        samples[kind] += n
    return {"passes": len(passes), **{kind: samples[kind] for kind in (FORWARD, INPUT, WEIGHTS)}}


def operations(network: nn.Module, passes: Sequence[Pass], shape: tuple[int, ...]) -> float:
    """Floating-point operations of ``passes``, counted in one forward pass of one sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), attack_mode(network):
        network(torch.zeros(1, *shape, dtype=next(network.parameters()).dtype))
    return counter.get_total_flops() * sum(_COST[kind] * n for kind, n in passes)


def product_peak(size: int = 1024, repeats: int = 9) -> float:
    """Operations per second of the machine's product of two float32 matrices, the best of ``repeats``."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(repeats))

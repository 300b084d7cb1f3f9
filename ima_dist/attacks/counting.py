"""What attacks meet in a network: gradients that are zero or not finite, logits that name no class, results outside."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import Box, Network
from ima_dist.core import norms

COUNTS = ("gradients", "zero", "not_finite", "answers", "bad_logits", "outside")
# Passes that wait to be counted together, with their values if these are few: for small networks a kernel or two is a
# noticeable part of a pass.
_WAITING, _FEW = 64, 1 << 14
# Under L2 advertorch divides a gradient by its norm, or by 1e-6 if that is larger: its steps on a gradient of the
# first size have a hundredth of their length, and those on one of the second, whose square overflows, none.
ADVERTORCH_L2 = (1e-8, 1e18)
# Values of a pass's samples, (B, K), and which of these samples count, (B,) bool; None for all.
_Waiting = tuple[Tensor, Tensor | None]


class Tally:
    """Counts that stay on the device until ``totals`` are read.

    Of single samples in single passes: gradients of the input, those of them that are zero and those that have NaN or
    infinity; answers, and those of them whose largest logit is NaN or infinite; and results of attacks outside the
    ball or the box.

    Attributes:
        useful: a gradient whose largest entry is not above the first number, or is above the second, counts as zero.
    """

    def __init__(self, device: torch.device | str, useful: tuple[float, float] = (0.0, math.inf)) -> None:
        self.useful, self.device = useful, device
        self._sums = torch.zeros(len(COUNTS), dtype=torch.float64, device=device)
        # By the number of values of a sample: they are counted together.
        self._gradients: dict[int, list[_Waiting]] = {}
        self._logits: dict[int, list[_Waiting]] = {}
        self._only: Tensor | None = None
        self._waiting = 0

    def add_gradient(self, gradient: Tensor, copy: bool = True) -> None:
        """gradient: (B, ...). Without a copy it must stay as it is: other people's attacks change theirs in place."""
        flat = gradient.flatten(1)
        few = flat.numel() <= _FEW
        self._wait(self._gradients, (flat.clone() if copy else flat) if few else flat.abs().amax(1, keepdim=True))

    def add_logits(self, logits: Tensor, copy: bool = True) -> None:
        """logits: (B, C). copy: as for ``add_gradient``."""
        found = logits.detach()
        few = found.numel() <= _FEW
        self._wait(self._logits, (found.clone() if copy else found) if few else found.amax(1, keepdim=True))

    def add_passes(self, gradients: list[Tensor], taking_part: Tensor, answers: Tensor, seen: Tensor) -> None:
        """Passes in which some samples are only padding.

        Args:
            gradients: (B, ...) each, which stay as they are. taking_part: (G, B) bool, those that count.
            answers: (K,), as from ``common.answered``. seen: (K,) bool, those that count.
        """
        counts = [seen.sum(), ((answers != answers) & seen).sum()]
        if not gradients:
            self._sums[3:5].add_(torch.stack(counts))
            return
        zero, bad = self._of_sizes(torch.stack(gradients).flatten(2).abs().amax(2))
        of = (taking_part, zero & taking_part, bad & taking_part)
        self._sums[:5].add_(torch.stack([*(which.sum() for which in of), *counts]))

    def add_outside(self, outside: Tensor) -> None:
        """outside: (B,) bool."""
        self._sums[COUNTS.index("outside")] += outside.sum()

    def totals(self) -> Tensor:
        """All counts so far, (6,) float64 on the device, in the order of ``COUNTS``."""
        self._settle()
        return self._sums.clone()

    def add_totals(self, totals: Tensor) -> None:
        """What another tally counted, (6,) float64, as from ``totals``."""
        self._sums.add_(totals)

    def clear(self) -> None:
        """Begin again at 0."""
        self._settle()
        self._sums.zero_()

    def _wait(self, place: dict[int, list[_Waiting]], values: Tensor) -> None:
        place.setdefault(values.shape[1], []).append((values, self._only))
        self._waiting += 1
        if self._waiting >= _WAITING:
            self._settle()

    def _of_sizes(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the gradients with these largest entries count as zero, and which are not finite."""
        lowest, highest = self.useful
        bad = sizes - sizes != 0
        zero = sizes <= lowest
        return zero if highest == math.inf else zero | ((sizes > highest) & ~bad), bad

    def _settle(self) -> None:
        for waiting in self._gradients.values():
            values, counts = _joined(waiting)
            zero, bad = self._of_sizes(values.abs().amax(1))
            self._sums[:3].add_(torch.stack([counts, zero & counts, bad & counts]).sum(1))
        for waiting in self._logits.values():
            values, counts = _joined(waiting)
            bad = ~values.amax(1).isfinite()
            self._sums[3:5].add_(torch.stack([counts, bad & counts]).sum(1))
        self._gradients, self._logits, self._waiting = {}, {}, 0


def _joined(waiting: list[_Waiting]) -> tuple[Tensor, Tensor]:
    """The values (N, K) of passes, and which samples count, (N,) bool."""
    values = torch.cat([part for part, _ in waiting])
    if all(only is None for _, only in waiting):
        return values, torch.ones(len(values), dtype=torch.bool, device=values.device)
    return values, torch.cat(
        [part.new_ones(len(part), dtype=torch.bool) if only is None else only for part, only in waiting]
    )


class Counted(nn.Module):
    """A network whose answers and whose gradients with respect to its input are counted, and else left as they are.

    It counts whatever asks for them: our attacks and other people's.
    """

    def __init__(self, network: nn.Module, tally: Tally) -> None:
        super().__init__()
        self.network, self.tally = network, tally
        #: Noise level -> its counts, once ``at_level`` has been called.
        self.levels: dict[float, Tally] = {}

    def forward(self, x: Tensor) -> Tensor:
        # Some attacks pass the same tensor again, which would keep the hooks of its earlier passes.
        seen = x.view_as(x)
        if seen.requires_grad:
            seen.register_hook(self.tally.add_gradient)
        logits: Tensor = self.network(seen)
        self.tally.add_logits(logits)
        return logits

    def without_hook(self, x: Tensor) -> Tensor:
        """The answers (B, C), for a caller that hands their gradient to ``tally`` itself."""
        logits: Tensor = self.network(x)
        self.tally.add_logits(logits, copy=False)
        return logits

    def counts(self) -> dict[float, dict[str, int]]:
        """Noise level -> its counts, by the names in ``COUNTS``. Waits once for the device."""
        if not self.levels:
            return {}
        found = torch.stack([tally.totals() for tally in self.levels.values()]).long().tolist()
        return {level: dict(zip(COUNTS, row, strict=True)) for level, row in zip(self.levels, found, strict=True)}


@contextmanager
def counting_only(network: Network, rows: Tensor | None) -> Iterator[None]:
    """Inside the block only the samples ``rows`` (B,) bool of each pass count, if ``network`` is ``Counted``.

    None: all of them.
    """
    if not isinstance(network, Counted):
        yield
        return
    network.tally._only = rows
    try:
        yield
    finally:
        network.tally._only = None


def at_level(network: Network, level: float, useful: tuple[float, float] = (0.0, math.inf)) -> None:
    """What follows is counted for this noise level, if ``network`` is ``Counted``.

    useful: as in ``Tally``. Whatever was counted before the first level belongs to it.
    """
    if isinstance(network, Counted):
        if level in network.levels:
            network.tally = network.levels[level]
        elif network.levels:
            network.tally = Tally(network.tally.device)
        network.tally.useful = useful
        network.levels[level] = network.tally


def put_back(network: Network, adv: Tensor, x: Tensor, eps: float, norm: str, box: Box) -> Tensor:
    """``adv`` (B, ...), where what lies outside the ball of radius ``eps`` around x or outside the box is put back.

    Samples that are outside by no more than rounding stay as they are; the others are counted, if ``network`` is
    ``Counted``. An entry that is NaN becomes that of x, because the network's answer to it says nothing.
    """
    outside = norms.outside(adv, x, eps, norm, box)
    if isinstance(network, Counted):
        network.tally.add_outside(outside)
    back = norms.clip(torch.where(adv.isfinite(), adv, x), x, eps, norm, box)
    return torch.where(norms.per_sample(outside, adv), back, adv)

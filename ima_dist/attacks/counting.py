"""What attacks meet in a network: gradients that are zero or not finite, logits that name no class, results outside."""

import math

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
        self._gradients: dict[int, list[Tensor]] = {}
        self._logits: dict[int, list[Tensor]] = {}
        self._waiting = 0

    def add_gradient(self, gradient: Tensor) -> None:
        """gradient: (B, ...)."""
        flat = gradient.flatten(1)
        # A copy, because attacks set gradients to zero in place.
        self._wait(self._gradients, flat.clone() if flat.numel() <= _FEW else flat.abs().amax(1, keepdim=True))

    def add_logits(self, logits: Tensor) -> None:
        """logits: (B, C)."""
        found = logits.detach()
        self._wait(self._logits, found.clone() if found.numel() <= _FEW else found.amax(1, keepdim=True))

    def add_outside(self, outside: Tensor) -> None:
        """outside: (B,) bool."""
        self._sums[COUNTS.index("outside")] += outside.sum()

    def totals(self) -> Tensor:
        """All counts so far, (6,) float64 on the device, in the order of ``COUNTS``."""
        self._settle()
        return self._sums.clone()

    def clear(self) -> None:
        """Begin again at 0."""
        self._settle()
        self._sums.zero_()

    def _wait(self, place: dict[int, list[Tensor]], values: Tensor) -> None:
        place.setdefault(values.shape[1], []).append(values)
        self._waiting += 1
        if self._waiting >= _WAITING:
            self._settle()

    def _settle(self) -> None:
        lowest, highest = self.useful
        for waiting in self._gradients.values():
            sizes = torch.cat(waiting).abs().amax(1)
            bad = ~sizes.isfinite()
            zero = (sizes <= lowest) | ((sizes > highest) & ~bad)
            self._sums[:3] += torch.stack([torch.ones_like(bad).sum(), zero.sum(), bad.sum()])
        for waiting in self._logits.values():
            bad = ~torch.cat(waiting).amax(1).isfinite()
            self._sums[3:5] += torch.stack([torch.ones_like(bad).sum(), bad.sum()])
        self._gradients, self._logits, self._waiting = {}, {}, 0


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
        return self.without_hook(seen)

    def without_hook(self, x: Tensor) -> Tensor:
        """The answers (B, C), for a caller that hands their gradient to ``tally`` itself."""
        logits: Tensor = self.network(x)
        self.tally.add_logits(logits)
        return logits

    def counts(self) -> dict[float, dict[str, int]]:
        """Noise level -> its counts, by the names in ``COUNTS``. Waits once for the device."""
        if not self.levels:
            return {}
        found = torch.stack([tally.totals() for tally in self.levels.values()]).long().tolist()
        return {level: dict(zip(COUNTS, row, strict=True)) for level, row in zip(self.levels, found, strict=True)}


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

"""Sums and times of an unfinished epoch."""

import time

import torch
from torch import Tensor

from ima_dist.attacks.counting import COUNTS, Tally
from ima_dist.core import distributed

_SUMS = ("loss", "correct", "seen", "noisy", "evaluations", "skipped")
# What attacks in training met; they leave neither ball nor box.
_MET = tuple(f"met_{name}" for name in COUNTS if name != "outside")
_NAMES = _SUMS + _MET
_TIMES = ("train", "margin")


class Counters:
    """What one worker has done since the epoch began.

    The sums stay on the device and are read only when something is reported or saved: reading forces a sync. What the
    host knows is counted there, because a copy to the device would force one, too.

    Attributes:
        sums: (6,) float64: loss, clean samples classified correctly, clean samples, noisy samples, forward passes spent
            by attacks, in samples, and steps that loss scaling has skipped; without what the host has counted.
        met: what the attacks have met (``attacks.counting``).
        seconds: spent on training steps ("train") and on the margin pass ("margin").
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self.met = Tally(device)
        self._here = [0.0] * len(_SUMS)
        self._earlier = torch.zeros(len(_MET), dtype=torch.float64, device=device)
        self.seconds = dict.fromkeys(_TIMES, 0.0)
        self._since = time.perf_counter()

    def add(self, loss: Tensor, correct: Tensor, *, seen: int, noisy: int, evaluations: int | Tensor) -> None:
        """Count a training step; ``loss`` and ``correct`` () are sums over this worker's samples."""
        self.sums[0].add_(loss)
        self.sums[1].add_(correct)
        self._here[2] += seen
        self._here[3] += noisy
        self.add_evaluations(evaluations)

    def add_evaluations(self, evaluations: int | Tensor) -> None:
        if isinstance(evaluations, Tensor):
            self.sums[4].add_(evaluations)
        else:
            self._here[4] += evaluations

    def add_skipped_step(self) -> None:
        """All workers skip a step together; worker 0 counts it."""
        self._here[5] += distributed.rank() == 0

    def start_clock(self) -> None:
        self._since = time.perf_counter()

    def lap(self, what: str) -> None:
        """Add the time since the last lap, or since ``start_clock``, to ``seconds[what]``."""
        now = time.perf_counter()
        self.seconds[what] += now - self._since
        self._since = now

    def totals(self) -> dict[str, float]:
        """The sums over all workers, by name. Collective."""
        sums = self.sums + self.sums.new_tensor(self._here)
        here = torch.cat([sums, self._earlier + self.met.totals()[: len(_MET)]])
        return dict(zip(_NAMES, distributed.all_reduce(here).tolist(), strict=True))

    def clear(self) -> None:
        """Begin an epoch."""
        self.sums.zero_()
        self._here = [0.0] * len(_SUMS)
        self.met.clear()
        self._earlier.zero_()
        self.seconds = dict.fromkeys(_TIMES, 0.0)

    def state_dict(self) -> dict[str, float]:
        """Totals and seconds. Collective."""
        return {**self.totals(), **{f"{name}_seconds": value for name, value in self.seconds.items()}}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a ``state_dict`` on any number of workers: worker 0 takes the totals, the others begin at 0."""
        self.clear()
        if distributed.rank() == 0:
            # Checkpoints of earlier versions do not have all of these.
            self.sums += self.sums.new_tensor([state.get(name, 0.0) for name in _SUMS])
            self._earlier += self.sums.new_tensor([state.get(name, 0.0) for name in _MET])
        self.seconds = {name: state[f"{name}_seconds"] for name in _TIMES}

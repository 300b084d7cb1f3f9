"""Attacks in evaluation against other people's, as installed: the same networks, samples and starts.

``worst``, the whole curve, against advertorch's PGD, run for each radius and loss: as a user calls it, and with the
gradients of the parameters switched off, which advertorch computes for nothing. PGD alone against advertorch's, pass by
pass. ``worst`` at one radius against AutoAttack's standard version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.networks import trained
from ima_dist.attacks import pgd, worst_curve
from ima_dist.attacks.common import Box
from ima_dist.core import noise
from ima_dist.evaluation.advertorch_pgd import advertorch_pgd

_LEVELS = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
_STEP_SCALE = 4.0
#: preset, method, options of the training, samples attacked
CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("moons", "ce", {"epochs": 4, "data.subset": 8000}, 200),
    ("moons", "ima", {"epochs": 10, "data.subset": 4000, "recipe": "fast"}, 200),
    ("fashion_mnist", "ce", {"epochs": 10, "data.subset": 6000}, 40),
    ("fashion_mnist", "ima", {"epochs": 6, "data.subset": 600, "recipe": "fast"}, 20),
]
_SMALL = {"epochs": 1, "data.subset": 20, "batch_size": 10}


def measure(quick: bool, pairs: int, report: Callable[[dict[str, Any]], None]) -> None:
    """Report a row for each network and comparison."""
    steps = 3 if quick else 100
    for preset, method, options, samples in CASES:
        network, x, y, box = trained(preset, {"method": method, **options, **(_SMALL if quick else {})})
        x, y = (x[:4], y[:4]) if quick else (x[:samples], y[:samples])
        attacked = _Attacked(network, x, y, box, steps)
        which = {"preset": preset, "method": method, "samples": len(y), "steps": steps}
        for other, compare in (("advertorch", _curve), ("advertorch, one PGD", _single), ("AutoAttack", _autoattack)):
            if other == "AutoAttack" and (preset == "moons" or quick):
                continue  # it takes images, and knows no smaller sizes
            report({**which, "against": other, **compare(attacked, pairs)})


class _Attacked:
    """A network, samples (B, ...) with labels (B,), and the starts that all attacks share."""

    def __init__(self, network: nn.Module, x: Tensor, y: Tensor, box: Box, steps: int) -> None:
        self.network, self.x, self.y, self.box, self.steps = network, x, y, box, steps
        self.keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(len(x)))

    def start(self, eps: float, number: int = 0) -> Tensor:
        return noise.start(noise.derived(self.keys, number) if number else self.keys, self.x, eps, "linf")

    def right(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x).argmax(1) == self.y

    def worst(self, levels: list[float]) -> list[float]:
        """Accuracies."""
        found = worst_curve(
            self.network, self.x, self.y, levels, norm="linf", steps=self.steps, start=self.start, box=self.box
        )
        return (found.predictions == self.y).double().mean(1).tolist()

    def advertorch(self, eps: float, loss: str) -> Tensor:
        settings: dict[str, Any] = {"norm": "linf", "steps": self.steps, "step_scale": _STEP_SCALE, "box": self.box}
        return advertorch_pgd(self.network, self.x, self.y, eps, loss=loss, start=self.start(eps), **settings)


def _curve(attacked: _Attacked, pairs: int) -> dict[str, Any]:
    accuracies: dict[str, list[float]] = {}

    def theirs() -> None:
        found = [attacked.right(attacked.x)]
        for eps in _LEVELS:
            ends = [attacked.right(attacked.advertorch(eps, loss)) for loss in ("ce", "margin")]
            found.append(ends[0] & ends[1])
        accuracies["theirs"] = torch.stack(found).double().mean(1).tolist()

    def ours() -> None:
        accuracies["ours"] = attacked.worst([0.0, *_LEVELS])

    with timing.recorded(attacked.network) as passes:
        ours()
        own = timing.counts(passes)
        passes.clear()
        theirs()
        other = timing.counts(passes)
    as_called = timing.interleaved(theirs, ours, pairs, warm=False)
    attacked.network.requires_grad_(False)
    without = timing.interleaved(theirs, ours, pairs, warm=False)
    attacked.network.requires_grad_(True)
    return {
        "theirs_over_ours": as_called.rounded(),
        "without_parameter_gradients": without.rounded(),
        "nowhere_more_accurate": all(a <= b for a, b in zip(accuracies["ours"], accuracies["theirs"], strict=True)),
        "levels": [0.0, *_LEVELS],
        "accuracies": {name: [round(value, 4) for value in found] for name, found in accuracies.items()},
        "passes": {"theirs": other, "ours": own},
    }


def _single(attacked: _Attacked, pairs: int) -> dict[str, Any]:
    """The same number of passes: what is left is what happens between them."""
    eps = _LEVELS[1]
    start = attacked.start(eps)

    def ours() -> Tensor:
        settings: dict[str, Any] = {"norm": "linf", "steps": attacked.steps, "step_scale": _STEP_SCALE}
        return pgd(attacked.network, attacked.x, attacked.y, eps, start=start, box=attacked.box, **settings)

    times = timing.interleaved(lambda: attacked.advertorch(eps, "ce"), ours, pairs, warm=False)
    return {"theirs_over_ours": times.rounded(), "level": eps}


def _autoattack(attacked: _Attacked, pairs: int) -> dict[str, Any]:
    from pyautoattack import AutoAttack

    eps, few = _LEVELS[1], 16
    part = _Attacked(attacked.network, attacked.x[:few], attacked.y[:few], attacked.box, attacked.steps)
    accuracies: dict[str, float] = {}

    def theirs() -> None:
        adversary = AutoAttack(part.network, norm="Linf", eps=eps, version="standard", device="cpu", seed=0)
        adversary.verbose = False
        points, _ = adversary.run_standard_evaluation(part.x, part.y, batch_size=few)
        accuracies["theirs"] = float(part.right(points).double().mean())

    def ours() -> None:
        accuracies["ours"] = part.worst([eps])[0]

    times = timing.interleaved(theirs, ours, min(pairs, 1), warm=False)
    return {"theirs_over_ours": times.rounded(), "level": eps, "samples": few, "accuracies": accuracies}

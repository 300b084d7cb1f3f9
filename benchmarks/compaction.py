"""What exact compaction saves: ``bpgd`` against the same algorithm without it (``plain.bpgd``).

Both are built from the same primitives, so that nothing else differs. ``allowed`` is the ratio of their bare passes
(``timing.Bare``), so that passes which cost the same whatever their size allow nothing; ``of_allowed`` is what is
reached of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import plain, timing
from benchmarks.networks import trained
from ima_dist.attacks import bpgd
from ima_dist.attacks.common import attack_mode
from ima_dist.core import noise

#: preset, norm, the largest radius that is tried, batches
CASES: list[tuple[str, str, float, list[int]]] = [
    ("moons", "linf", 1.0, [128, 2048]),
    ("moons", "l2", 1.0, [128, 2048]),
    ("fashion_mnist", "linf", 0.5, [128]),
    ("fashion_mnist", "l2", 8.0, [128]),
]
_SHARES = (0.2, 0.4, 0.77)
_TRAINING = {
    "moons": {"epochs": 5, "data.subset": 20000},
    "fashion_mnist": {"epochs": 3, "data.subset": 2000},
}
_SMALL = {"epochs": 1, "data.subset": 20, "batch_size": 10, "attack.steps": 2, "attack.bisections": 2}


def measure(quick: bool, pairs: int, report: Callable[[dict[str, Any]], None]) -> None:
    """Report a row for each network, norm, batch and share of crossing samples."""
    for preset, norm, largest, batches in CASES:
        options = {"method": "adv", "norm": norm, **_TRAINING[preset], **(_SMALL if quick else {})}
        network, x, y, box = trained(preset, options)
        for batch in batches[:1] if quick else batches:
            rows = torch.arange(4 if quick else batch) % len(x)
            for share in _SHARES[:1] if quick else _SHARES:
                keys = noise.sample_keys(0, 0, noise.Phase.TRAIN, torch.arange(len(rows)))
                unit = noise.start(keys, x[rows], 1.0, norm)
                attack = functools.partial(bpgd, network, x[rows], y[rows], norm=norm, box=box)
                eps = _radius(attack, unit, share, largest)
                row = _compare(network, (x[rows], y[rows]), eps, unit * eps, norm, box, pairs)
                report({"preset": preset, "norm": norm, "batch": len(rows), "eps": round(eps, 5), **row})


def _radius(attack: Callable[..., Any], unit: torch.Tensor, share: float, largest: float) -> float:
    """The radius at which about ``share`` of the correctly classified samples cross."""
    low, high = 0.0, largest
    for _ in range(7):
        middle = (low + high) / 2
        found = attack(middle, start=unit * middle, bisections=0)
        crossing = float(found.crossed.sum() / found.correct.sum().clamp_min(1))
        low, high = (middle, high) if crossing < share else (low, middle)
    return (low + high) / 2


def _compare(
    network: nn.Module,
    samples: tuple[torch.Tensor, torch.Tensor],
    eps: float,
    start: torch.Tensor,
    norm: str,
    box: Any,
    pairs: int,
) -> dict[str, Any]:
    settings: dict[str, Any] = {"norm": norm, "start": start, "box": box}
    found: dict[str, Any] = {}
    passes: dict[str, list[timing.Pass]] = {}
    attacks: dict[str, Callable[..., Any]] = {"compact": bpgd, "plain": plain.bpgd}
    for name, attack in attacks.items():
        with timing.recorded(network) as passes[name], attack_mode(network):
            found[name] = attack(network, *samples, eps, **settings)
    _, crossed, correct = found["plain"]
    bare = timing.Bare(network, samples[0].shape[1:], len(samples[0]))
    bare.time(repeats=5)
    times = timing.interleaved(
        lambda: plain.bpgd(network, *samples, eps, **settings), lambda: bpgd(network, *samples, eps, **settings), pairs
    )
    bare.time(repeats=5)
    allowed = bare.total(passes["plain"]) / bare.total(passes["compact"])
    return {
        "crossing": round(float(found["compact"].crossed.sum() / correct.sum().clamp_min(1)), 3),
        "crossing_differs": int((found["compact"].crossed != (crossed & correct)).sum()),
        "plain_over_compact": times.rounded(),
        "allowed": round(allowed, 3),
        "of_allowed": round(times.ratio / allowed, 3),
        "passes": {name: timing.counts(made) for name, made in passes.items()},
    }

"""What the recipe ``fast`` loses in robustness and saves in evaluations, paired with the exact attack of IMA (online).

Both have the same seed, data and test samples, and are attacked by ``worst_curve``. "Loss" is the mean over the noise
levels of the accuracy that the recipe loses, with its interval over the test samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.epochs import prepared
from ima_dist.attacks import worst_curve
from ima_dist.config.presets import make_config
from ima_dist.core import noise
from ima_dist.data.load import load
from ima_dist.data.types import Resident

_LEVELS = [0.0, 0.05, 0.1, 0.15, 0.2]
_AT_ONCE = 250
#: preset -> size -> options, seeds, test samples, steps of the attack
CASES: dict[str, dict[str, tuple[dict[str, Any], int, int, int]]] = {
    "moons": {
        "full": ({"data.subset": 4000, "epochs": 15}, 5, 1000, 20),
        "short": ({"data.subset": 2000, "epochs": 10}, 2, 400, 20),
        "quick": ({"data.subset": 64, "epochs": 1}, 1, 4, 2),
    },
    "fashion_mnist": {
        "full": ({"data.subset": 2000, "epochs": 8}, 3, 1000, 20),
        "short": ({"data.subset": 600, "epochs": 6}, 1, 400, 20),
        "quick": ({"data.subset": 20, "batch_size": 10, "epochs": 1}, 1, 4, 2),
    },
}


def measure(size: str, folder: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Report a row for each preset and seed."""
    for preset, sizes in CASES.items():
        options, seeds, samples, steps = sizes[size]
        for seed in range(seeds):
            common = {"margin_update": "online", "seed": seed, **options}
            exact, spent = _right(preset, common, samples, steps, folder)
            fast, less = _right(preset, {**common, "recipe": "fast"}, samples, steps, folder)
            lost = (exact - fast).mean(1)
            report(
                {
                    "preset": preset,
                    "seed": seed,
                    "samples": len(lost),
                    "levels": _LEVELS,
                    "exact": exact.mean(0).tolist(),
                    "fast": fast.mean(0).tolist(),
                    "loss": float(lost.mean()),
                    "half_interval": 1.96 * float(lost.std()) / len(lost) ** 0.5,
                    "evaluations": spent / less,
                }
            )


def _right(preset: str, options: dict[str, Any], samples: int, steps: int, folder: str) -> tuple[Tensor, float]:
    """Whether each test sample withstands each noise level (B, levels) float64, and evaluations of the training."""
    config = make_config(preset, options)
    data = load(config.data, config.seed)
    training = prepared(config, data, folder)
    network = training.fit()
    # The subset's own test set may be smaller.
    whole = load(config.data.model_copy(update={"subset": None}), config.seed).test
    test, found = Resident(whole, "cpu", torch.float32, data.box), []
    for part in torch.arange(min(samples, len(whole))).split(_AT_ONCE):
        x, y = test.batch(part)
        keys = noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, part)

        def start(eps: float, number: int, keys: Tensor = keys, x: Tensor = x) -> Tensor:
            return noise.start(noise.derived(keys, number) if number else keys, x, eps, config.norm)

        curve = worst_curve(network, x, y, _LEVELS, norm=config.norm, steps=steps, start=start, box=data.box)
        found.append((curve.predictions == y).T)
    return torch.cat(found).double(), sum(row["evaluations"] for row in training.history)

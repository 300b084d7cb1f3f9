"""Contents of the files of a run: history, points of curves, margins; and Table 1 of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ima_dist.margins import snapshots
from ima_dist.rundir.curves import Point
from ima_dist.rundir.directory import RunDir

# Table 1 of the paper (Moons, L∞).
NOISE = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
TABLE_1 = {
    "ima": [1.0, 0.999, 0.9975, 0.9915, 0.9755, 0.927, 0.823],
    "mma": [1.0, 0.9985, 0.993, 0.957, 0.882, 0.772, 0.597],
    "trades": [0.996, 0.9805, 0.9575, 0.936, 0.906, 0.875, 0.8255],
    "adv": [0.9975, 0.985, 0.957, 0.9365, 0.9095, 0.883, 0.822],
    "ce": [1.0, 1.0, 0.9975, 0.9855, 0.935, 0.7995, 0.606],
}
HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 0.5 / epoch,
        "train_accuracy": 1 - 0.1 / epoch,
        "val_accuracy": None if epoch == 1 else 1 - 0.2 / epoch,
        "margin_mean": 0.01 * epoch,
        "margin_quantiles": [0.002 * epoch * i for i in range(11)],
        "margin_histogram": [epoch] * 50,
        "share_at_max": 0.25,
        "evaluations": 1000 * epoch,
        "train_seconds": 3,
        "margin_seconds": 1.5,
        "samples_per_second": 9000.0,
    }
    for epoch in (1, 2, 3)
]


def point(attack: str, noise: float, accuracy: float | None, **changes: Any) -> Point:
    return Point.from_json(entry(attack, noise, accuracy, **changes))


def entry(attack: str, noise: float, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    base = {"attack": attack, "loss": "both", "norm": "linf", "noise": noise, "split": "test"}
    rest = {"accuracy": accuracy, "samples": 2000, "steps": 100, "step_scale": 4.0, "epoch": 30}
    return {**base, **rest, **changes}


def write_snapshot(run: RunDir, epoch: int, margins: list[float], world: int = 2, whole: bool = True) -> list[Path]:
    """The shards of a snapshot by ``world`` workers with equally many samples each."""
    directory = run.margins_dir / f"epoch={epoch:04d}"
    directory.mkdir(parents=True)
    values, each = np.array(margins, np.float32), len(margins) // world

    def columns(start: int, stop: int) -> dict[str, np.ndarray]:
        flags = np.ones(stop - start, bool)
        return {"margin": values[start:stop], "label": np.arange(start, stop) % 2, "correct": flags, "crossed": ~flags}

    shards = [snapshots.write_shard(directory, r, world, r * each, (r + 1) * each, columns) for r in range(world)]
    if whole:
        snapshots.write_manifest(directory, snapshots.Manifest(tuple(shards), None))
    return [directory / shard.file for shard in shards]

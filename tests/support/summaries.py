"""Finished runs as a summary only, and tables of outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from ima_dist.config.presets import make_config
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json


def curve(accuracies: dict[float, float], **changes: Any) -> list[dict[str, Any]]:
    usual = {"attack": "pgd100", "loss": "both", "split": "test", "samples": 2000, "steps": 100, "step_scale": 4.0}
    return [{**usual, "noise": x, "accuracy": a, **changes} for x, a in accuracies.items()]


def make_run(
    path: Path, preset: str, accuracies: dict[float, float], of_curve: dict[str, Any] | None = None, **options: Any
) -> RunDir:
    """A finished run as a summary alone; double underscores in options stand for dots."""
    config = make_config(preset, {name.replace("__", "."): value for name, value in options.items()})
    run = RunDir.create(config, path)
    entries = curve(accuracies, **{"norm": config.norm, "epoch": config.epochs, **(of_curve or {})})
    write_json(run.summary_path, {"status": "finished", "curves": entries, "clean_accuracy": 0.5})
    return run


def outcomes(attack: str, noise: float, right: dict[int, bool], **changes) -> list[dict]:
    row = {"attack": attack, "loss": "both", "noise": noise, "epoch": 3, "label": 1, **changes}
    return [{**row, "index": index, "prediction": int(good)} for index, good in right.items()]


def outcomes_table(*parts: list[dict]) -> pa.Table:
    return pa.Table.from_pylist([row for part in parts for row in part])

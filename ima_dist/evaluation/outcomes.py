"""Outcomes of an evaluation, one row per sample, attack, loss and noise level, and the curves they make."""

from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from ima_dist.config.attacks import protocol
from ima_dist.config.schema import Config
from ima_dist.evaluation.attacks import Predictions
from ima_dist.rundir.curves import Point
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet, write_json, write_parquet


def outcomes_table(attack: str, found: Predictions, indices: Tensor, y: Tensor, config: Config, epoch: int) -> pa.Table:
    """Rows for the samples ``indices`` (B,) of the test set with labels ``y`` (B,)."""
    pieces = [
        pa.table(
            {
                "index": indices.cpu().numpy(),
                "attack": pa.repeat(attack, len(indices)),
                "loss": pa.repeat(loss, len(indices)),
                "norm": pa.repeat(config.norm, len(indices)),
                "noise": np.full(len(indices), level),
                "epoch": np.full(len(indices), epoch),
                "label": y.cpu().numpy(),
                "prediction": predicted.cpu().numpy(),
            }
        )
        for (loss, level), predicted in found.items()
    ]
    return pa.concat_tables(pieces)


def points_of(outcomes: pa.Table, config: Config) -> list[Point]:
    """The accuracy for each attack, epoch, loss and noise level."""
    right = pa.array(outcomes["label"].to_numpy() == outcomes["prediction"].to_numpy())
    grouped = (
        outcomes.append_column("right", right)
        .group_by(["attack", "epoch", "loss", "noise"], use_threads=False)
        .aggregate([("right", "mean"), ("right", "count")])
        .rename_columns(["attack", "epoch", "loss", "noise", "accuracy", "samples"])
    )
    return [
        Point(norm=config.norm, split="test", **row, **protocol(row["attack"], config)) for row in grouped.to_pylist()
    ]


def save(run: RunDir, outcomes: pa.Table, config: Config, summary: dict[str, Any]) -> None:
    """Put one evaluation's outcomes and curves, and ``summary``, beside those of other attacks and epochs.

    One worker calls it. Raises OSError.
    """
    points = points_of(outcomes, config)
    done = {(point.attack, point.epoch) for point in points}
    kept = [point for point in run.points() if (point.attack, point.epoch) not in done]
    if run.outcomes_path.exists():
        old = read_parquet(run.outcomes_path)
        keys = zip(old["attack"].to_pylist(), old["epoch"].to_pylist(), strict=True)
        outcomes = pa.concat_tables([old.filter(pa.array([key not in done for key in keys])), outcomes])
    write_parquet(run.outcomes_path, outcomes)
    write_json(run.summary_path, {**run.summary(), **summary, "curves": [p.to_json() for p in kept + points]})

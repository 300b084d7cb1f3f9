"""Outcomes of an evaluation, one row per sample, attack, loss and noise level, and the curves they make."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from ima_dist.config.attacks import protocol
from ima_dist.config.schema import Config
from ima_dist.rundir.curves import Point, noise_key, shown_protocols
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet


def outcomes_table(
    attack: str,
    found: Mapping[tuple[str, float], Tensor],
    indices: Tensor,
    y: Tensor,
    config: Config,
    epoch: int,
    implied: Mapping[float, Tensor] = MappingProxyType({}),
) -> pa.Table:
    """Rows for the samples ``indices`` (B,) of the test set with labels ``y`` (B,).

    found, implied: as in ``Predictions``.
    """
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
                "implied": implied[level].cpu().numpy() if level in implied else np.zeros(len(indices), dtype=bool),
            }
        )
        for (loss, level), predicted in found.items()
    ]
    return pa.concat_tables(pieces)


def points_of(
    outcomes: pa.Table, config: Config, test_samples: int, met: Mapping[float, dict[str, int]] | None = None
) -> list[Point]:
    """The accuracy for each attack, epoch, loss and noise level.

    test_samples: the size of the test set. met: what the attack of these outcomes met at each noise level.
    """
    right = pa.array(outcomes["label"].to_numpy() == outcomes["prediction"].to_numpy())
    implied = outcomes["implied"].fill_null(False) if "implied" in outcomes.column_names else pa.nulls(len(outcomes))
    grouped = (
        outcomes.select(["attack", "epoch", "loss", "noise"])
        .append_column("right", right)
        .append_column("implied", implied.cast(pa.int64()))
        .group_by(["attack", "epoch", "loss", "noise"], use_threads=False)
        .aggregate([("right", "mean"), ("right", "count"), ("implied", "sum")])
        .rename_columns(["attack", "epoch", "loss", "noise", "accuracy", "samples", "implied"])
    )
    rows = [row | {"implied": row["implied"] or 0} | _turned_wrong(outcomes, row) for row in grouped.to_pylist()]
    orders = ["first" if row["samples"] == test_samples else config.eval.order for row in rows]
    return [
        Point(
            norm=config.norm,
            split="test",
            order=order,
            met=(met or {}).get(row["noise"]) if row["loss"] == "both" else None,
            **row,
            **protocol(row["attack"], config),
        )
        for row, order in zip(rows, orders, strict=True)
    ]


def _turned_wrong(outcomes: pa.Table, row: dict[str, Any]) -> dict[str, float]:
    """ "turned_wrong" for a noise level of white noise, if the same samples were also classified without noise.

    Noise without an aim also makes wrong answers right, so that the accuracy alone does not tell this share.
    """
    if row["attack"] != "white-noise" or not row["noise"] > 0:
        return {}
    of_row = (pc.field("attack") == row["attack"]) & (pc.field("epoch") == row["epoch"])
    right = {}
    for level in (0.0, row["noise"]):
        chosen = outcomes.filter(of_row & (pc.field("noise") == level)).sort_by("index")
        right[level] = chosen["label"].to_numpy() == chosen["prediction"].to_numpy()
    before, after = right.values()
    return {"turned_wrong": float((before & ~after).mean())} if len(before) == len(after) else {}


def is_shown(run: RunDir, points: list[Point]) -> bool:
    """True if tables will show one of ``points``, which have just been measured."""
    shown = shown_protocols([*run.points(), *points])
    return any(shown[point.attack, point.epoch] == point.protocol for point in points)


def save(
    run: RunDir,
    outcomes: pa.Table,
    config: Config,
    summary: dict[str, Any],
    met: Mapping[float, dict[str, int]] | None = None,
) -> list[Point]:
    """Put one evaluation's outcomes and curves, and ``summary``, beside those of other attacks, epochs and protocols.

    ``summary``: has "test_samples", the size of the test set. One worker calls it; returns the new points. Raises
    OSError.
    """
    points, before = points_of(outcomes, config, summary["test_samples"], met), run.points()
    done = {_key(point) for point in points}
    outcomes = _with_protocol(outcomes, points)
    if run.outcomes_path.exists():
        old = read_parquet(run.outcomes_path)
        old = old if "protocol" in old.column_names else _with_protocol(old, before)
        # Earlier versions attacked every sample at every level: those rows have null in the column "implied".
        outcomes = pa.concat_tables([_without(old, done), outcomes], promote_options="default")
    kept = [point for point in before if _key(point) not in done]
    run.write_parquet(run.outcomes_path, outcomes)
    run.write_json(run.summary_path, {**run.summary(), **summary, "curves": [p.to_json() for p in kept + points]})
    return points


def _key(point: Point) -> tuple[str, int, str, float]:
    """What is replaced when it is evaluated again."""
    return point.attack, point.epoch, point.protocol, point.level


def _with_protocol(outcomes: pa.Table, points: list[Point]) -> pa.Table:
    """``outcomes``, which have one protocol for each attack and epoch: that of ``points``."""
    protocols = {(point.attack, point.epoch): point.protocol for point in points}
    keys = zip(outcomes["attack"].to_pylist(), outcomes["epoch"].to_pylist(), strict=True)
    return outcomes.append_column("protocol", pa.array([protocols.get(key, "") for key in keys], pa.string()))


def _without(outcomes: pa.Table, done: set[tuple[str, int, str, float]]) -> pa.Table:
    columns = [outcomes[name].to_pylist() for name in ("attack", "epoch", "protocol")]
    levels = map(noise_key, outcomes["noise"].to_pylist())
    return outcomes.filter(pa.array([key not in done for key in zip(*columns, levels, strict=True)], pa.bool_()))

"""Outcomes of an evaluation, one row per sample, attack, loss and noise level, and what summary.json says of them.

Where an attack keeps the logits behind its verdict, a batch's outcomes have the classes' probabilities too. They go
into a file of their own, which is small beside the samples but larger than the outcomes.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from ima_dist.config.attacks import protocol
from ima_dist.config.schema import Config
from ima_dist.results import performance
from ima_dist.results.clustered import Codes, effective_samples
from ima_dist.results.performance import MOST_CLASSES, Performance
from ima_dist.rundir.curves import Point, noise_key, shown_protocols
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet

_PROBABILITY = pa.list_(pa.float32())


def outcomes_table(
    attack: str,
    found: Mapping[tuple[str, float], Tensor],
    indices: Tensor,
    y: Tensor,
    config: Config,
    epoch: int,
    implied: Mapping[float, Tensor] = MappingProxyType({}),
    logits: Mapping[float, Tensor] = MappingProxyType({}),
    distance: Tensor | None = None,
) -> pa.Table:
    """Rows for the samples ``indices`` (B,) of the test set with labels ``y`` (B,).

    found, implied, logits, distance: as in ``Predictions``. The column "probability", of each class, is there if there
    are logits and the classes are few; the column "distance", the same at every level, if the attack seeks it.
    """
    keep = any(part.shape[1] <= MOST_CLASSES for part in logits.values())
    pieces = []
    for (loss, level), predicted in found.items():
        columns = {
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
        if keep:
            there = loss == "both" and level in logits
            columns["probability"] = listed(logits[level]) if there else pa.nulls(len(indices), _PROBABILITY)
        if distance is not None:
            columns["distance"] = distance.double().cpu().numpy()
        pieces.append(pa.table(columns))
    return pa.concat_tables(pieces)


def listed(logits: Tensor) -> pa.Array:
    """The probabilities (B, C) of logits as a column of lists."""
    found = logits.double().softmax(1).float().cpu().numpy()
    ends = np.arange(len(found) + 1, dtype=np.int32) * found.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(found.reshape(-1)))


def probabilities_in(table: pa.Table) -> np.ndarray | None:
    """The column "probability" as an array (N, C); None if it is missing or has gaps."""
    if "probability" not in table.column_names or not table.num_rows:
        return None
    column = table["probability"].combine_chunks()
    found = column.flatten().to_numpy(zero_copy_only=False)
    # Samples that an earlier version attacked before an interruption have none.
    return None if column.null_count or len(found) % len(column) else found.reshape(len(column), -1)


def points_of(
    outcomes: pa.Table,
    config: Config,
    test_samples: int,
    met: Mapping[float, dict[str, int]] | None = None,
    groups: Codes | None = None,
    remarks: list[str] | None = None,
) -> list[Point]:
    """The accuracy for each attack, epoch, loss and noise level.

    test_samples: the size of the test set. met: what the attack of these outcomes met at each noise level. groups: of
    the whole test set, if they are known. remarks: names of the warnings of the attack, if it is AutoAttack.
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
    rows = [
        row | {"implied": row["implied"] or 0} | _turned_wrong(outcomes, row) | _grouped(outcomes, row, groups)
        for row in grouped.to_pylist()
    ]
    orders = ["first" if row["samples"] == test_samples else config.eval.order for row in rows]
    return [
        Point(
            norm=config.norm,
            split="test",
            order=order,
            met=(met or {}).get(row["noise"]) if row["loss"] == "both" else None,
            remarks=remarks if row["attack"] == "autoattack" else None,
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


def rows_at(outcomes: pa.Table, row: Mapping[str, Any]) -> pa.Table:
    """The outcomes behind a point."""
    here = [pc.field(name) == row[name] for name in ("attack", "epoch", "loss", "noise")]
    return outcomes.filter(here[0] & here[1] & here[2] & here[3])


def _grouped(outcomes: pa.Table, row: dict[str, Any], groups: Codes | None) -> dict[str, Any]:
    """The number of groups behind a point, and of samples that say as much; nothing if groups are not known."""
    if groups is None:
        return {}
    own, accuracy = rows_at(outcomes, row), row["accuracy"]
    codes = groups[own["index"].to_numpy()]
    right = own["label"].to_numpy() == own["prediction"].to_numpy()
    count = effective_samples(accuracy, (right - accuracy) / len(right), codes, len(right))
    return {"groups": len(np.unique(codes)), "effective_samples": float(count)}


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
    groups: Codes | None = None,
    remarks: list[str] | None = None,
) -> list[Point]:
    """Put one evaluation's outcomes, curves and performances, and ``summary``, beside those of other attacks, epochs
    and protocols.

    ``summary``: has "test_samples", the size of the test set, and "classes", their number. ``groups``: of the whole
    test set. One worker calls it; returns the new points. Raises OSError.
    """
    points, before = points_of(outcomes, config, summary["test_samples"], met, groups, remarks), run.points()
    measured = performances(outcomes, points, summary.get("classes"), groups)
    done = {_key(point) for point in points}
    outcomes = _with_protocol(outcomes, points)
    if "probability" in outcomes.column_names:
        keep_probabilities(run, _with_probabilities(outcomes), done)
        outcomes = outcomes.drop_columns("probability")
    if run.outcomes_path.exists():
        old = read_parquet(run.outcomes_path)
        old = old if "protocol" in old.column_names else _with_protocol(old, before)
        # Earlier versions attacked every sample at every level: those rows have null in the column "implied".
        outcomes = pa.concat_tables([_without(old, done), outcomes], promote_options="default")
    kept = [point for point in before if _key(point) not in done]
    run.write_parquet(run.outcomes_path, outcomes)
    curves = {"curves": [p.to_json() for p in kept + points]}
    run.write_json(run.summary_path, {**run.summary(), **summary, **curves, **joined(run.summary(), measured)})
    return points


def _with_probabilities(outcomes: pa.Table) -> pa.Table:
    """The rows with probabilities, at the noise levels of an attack at which every sample has them.

    An earlier version may have attacked the others, before an interruption: what is left says nothing of all.
    """
    both = outcomes.filter(pc.field("loss") == "both")
    both = both.append_column("known", both["probability"].is_valid())
    whole = both.group_by(["attack", "epoch", "noise"]).aggregate([("known", "all")])
    keys = {(row["attack"], row["epoch"], row["noise"]) for row in whole.to_pylist() if row["known_all"]}
    columns = [both[name].to_pylist() for name in ("attack", "epoch", "noise")]
    chosen = both.filter(pa.array([key in keys for key in zip(*columns, strict=True)], pa.bool_()))
    return chosen.drop_columns("known")


def keep_probabilities(run: RunDir, new: pa.Table, done: set[tuple[str, int, str, float]]) -> None:
    """Put rows of one evaluation into probabilities.parquet, in place of those with the keys ``done``. OSError."""
    new = new.drop_columns([name for name in ("loss", "norm", "implied") if name in new.column_names])
    if run.probabilities_path.exists():
        new = pa.concat_tables([_without(read_parquet(run.probabilities_path), done), new])
    run.write_parquet(run.probabilities_path, new)


def joined(summary: dict[str, Any], measured: list[Performance]) -> dict[str, list[dict[str, Any]]]:
    """The entry "performance" of summary.json with these beside the others."""
    new = {entry.key for entry in measured}
    kept = [entry for entry in performance.entries(summary) if entry.key not in new]
    return {"performance": [entry.to_json() for entry in kept + measured]}


def performances(
    outcomes: pa.Table, points: list[Point], classes: int | None, groups: Codes | None
) -> list[Performance]:
    """The performance behind each point with loss "both"; [] if the number of classes is not known."""
    found = []
    for point in points if classes else ():
        if point.loss == "both" and classes:
            own = rows_at(outcomes, point.model_dump())
            found.append(
                performance.measure(
                    own["label"].to_numpy(),
                    own["prediction"].to_numpy(),
                    probabilities_in(own),
                    classes=classes,
                    groups=None if groups is None else groups[own["index"].to_numpy()],
                    **{name: getattr(point, name) for name in ("attack", "epoch", "noise", "protocol")},
                )
            )
    return found


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

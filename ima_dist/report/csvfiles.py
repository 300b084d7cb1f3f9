"""The report's figures as tidy CSV: one row per accuracy."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ima_dist.config.presets import data_name
from ima_dist.report.tables import Measured, Table, setting_differences
from ima_dist.results.by_class import class_names, class_rows
from ima_dist.results.margin_bins import histogram_of
from ima_dist.results.performance import shown
from ima_dist.results.statistics import interval_of
from ima_dist.results.text import harmless
from ima_dist.rundir.run import Run

_MEASURED = ("norm", "attack", "loss", "split", "epoch", "noise", "accuracy")
_PROTOCOL = ("samples", "steps", "step_scale", "spsa_samples", "order", "version", "implied")


def table_csv(table: Table) -> str:
    """A row for each row, attack, split and noise level: our accuracy and the paper's.

    ours is the mean over the runs; low95, high95 its interval (see ``Measured``); spread the standard deviation over
    seeds; difference ours less the paper's; legible whether the paper's digits could be read.
    """
    rows = []
    for line in table.lines:
        for split, noise in table.keys:
            ours, theirs = line.ours.get((split, noise), Measured(float("nan"))), line.theirs.get((split, noise))
            low, high = ours.interval or (None, None)
            rows.append(
                {
                    "table": table.number,
                    "preset": table.preset,
                    "norm": table.norm,
                    "row": line.row,
                    "attack": line.attack,
                    "epoch": line.epoch,
                    "split": split,
                    "noise": noise,
                    "ours": ours.accuracy,
                    "low95": low,
                    "high95": high,
                    "samples": ours.samples,
                    "spread": ours.spread,
                    "seeds": " ".join(str(r.config.seed) for r in line.results),
                    "paper": theirs.accuracy if theirs else None,
                    "legible": theirs.legible if theirs else None,
                    "difference": round(ours.accuracy - theirs.accuracy, 6) if theirs else None,
                    "reduced": ("yes" if line.reduced else "no") if line.results else None,
                    "differs": "; ".join(line.differs),
                    "runs": " ".join(r.name for r in line.results),
                }
            )
    return _text(rows)


def curves_csv(results: list[Run]) -> str:
    """Every accuracy of every run: each attack, loss, epoch and noise level."""
    rows = []
    for result in results:
        config = result.config
        names = ("preset", "method", "eps_max", "beta", "seed")
        run = {"run": result.name, "data": data_name(config), **{name: getattr(config, name) for name in names}}
        differs = "; ".join(setting_differences(config, {"seed"}))
        for point in result.points:
            known = point.accuracy is not None
            low, high = interval_of(point) if known else (None, None)
            measured, protocol = ({name: getattr(point, name) for name in names} for names in (_MEASURED, _PROTOCOL))
            rows.append({**run, **measured, "low95": low, "high95": high, **protocol, "differs": differs})
    return _text(rows)


def classes_csv(results: list[Run]) -> str | None:
    """Recall, precision and AUC of each class of each run, without noise and under attack; None if no run has them."""
    rows = [
        {"run": run.name, "attack": entry.attack, "noise": entry.noise, "epoch": entry.epoch, **row}
        for run in results
        for entry in shown(run)
        for row in class_rows(entry, class_names(run))
    ]
    return _text(rows) if rows else None


def margins_csv(results: list[Run]) -> str | None:
    """Histogram of each run's margins over the training samples, from 0 as far as they go; None without margins."""
    parts = []
    for result in results:
        if not result.margin_count:
            continue
        config = result.config
        epoch, counts, edges = result.over_margins(_counting(config.eps_max)) or (0, *histogram_of([], config.eps_max))
        run = {"run": harmless(result.name), "preset": config.preset, "method": config.method, "norm": config.norm}
        parts.append(pd.DataFrame({**run, "epoch": epoch, "low": edges[:-1], "high": edges[1:], "samples": counts}))
    return pd.concat(parts).to_csv(index=False, lineterminator="\n") if parts else None


def _counting(eps_max: float) -> Callable[[int, int, Iterator[pa.Table]], tuple[int, np.ndarray, np.ndarray]]:
    """What ``Run.over_margins`` takes, for the epoch and the histogram of the margins."""
    return lambda epoch, _, pieces: (epoch, *histogram_of((piece["margin"].to_numpy() for piece in pieces), eps_max))


def _text(rows: list[dict[str, Any]]) -> str:
    safe = [{name: harmless(value) for name, value in row.items()} for row in rows]
    # As objects, so that whole numbers stay whole in a column where some are missing.
    return pd.DataFrame(safe, dtype=object).to_csv(index=False, lineterminator="\n")

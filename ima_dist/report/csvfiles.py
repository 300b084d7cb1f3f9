"""The report's figures as tidy CSV: a row an accuracy, columns named once."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from ima_dist.report.tables import Measured, Table, setting_differences
from ima_dist.results.statistics import wilson_interval
from ima_dist.rundir.run import Run

BINS = 50
_MEASURED = ("norm", "attack", "loss", "split", "epoch", "noise", "accuracy")
_PROTOCOL = ("samples", "steps", "step_scale", "spsa_samples")


def table_csv(table: Table) -> str:
    """A row for each row, attack, split and noise level: our accuracy and the paper's.

    ours is the mean over the runs; low95, high95 its Wilson interval; spread the standard deviation over
    seeds; difference ours less the paper's; legible whether the paper's digits could be read.
    """
    rows = []
    for line in table.lines:
        for split, noise in table.keys:
            ours, theirs = line.ours.get((split, noise), Measured(float("nan"))), line.theirs.get((split, noise))
            known = ours.accuracy == ours.accuracy
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
                    "ours": ours.accuracy if known else None,
                    "low95": low,
                    "high95": high,
                    "samples": ours.samples,
                    "spread": ours.spread,
                    "seeds": " ".join(str(r.config.seed) for r in line.results),
                    "paper": theirs.accuracy if theirs else None,
                    "legible": theirs.legible if theirs else None,
                    "difference": round(ours.accuracy - theirs.accuracy, 6) if known and theirs else None,
                    "reduced": ("yes" if line.differs else "no") if line.results else None,
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
        differs = "; ".join(setting_differences(config, {"seed"}))
        for point in result.points:
            low, high = (None, None)
            if point.accuracy is not None:
                low, high = wilson_interval(point.accuracy, point.samples)
            rows.append(
                {
                    "run": result.name,
                    "preset": config.preset,
                    "method": config.method,
                    "eps_max": config.eps_max,
                    "beta": config.beta,
                    "seed": config.seed,
                    **{name: getattr(point, name) for name in _MEASURED},
                    "low95": low,
                    "high95": high,
                    **{name: getattr(point, name) for name in _PROTOCOL},
                    "differs": differs,
                }
            )
    return _text(rows)


def margins_csv(results: list[Run]) -> str | None:
    """Histogram of each run's margins over the training samples, from 0 to ε_max; None without margins."""
    rows = []
    for result in results:
        if result.margins is None:
            continue
        epoch, margins = result.margins[0], result.margins[1]["margin"].to_numpy()
        counts, edges = margin_histogram(margins, result.config.eps_max)
        for i, count in enumerate(counts):
            rows.append(
                {
                    "run": result.name,
                    "preset": result.config.preset,
                    "method": result.config.method,
                    "norm": result.config.norm,
                    "epoch": epoch,
                    "low": edges[i],
                    "high": edges[i + 1],
                    "samples": count,
                }
            )
    return _text(rows) if rows else None


def margin_histogram(margins: np.ndarray, eps_max: float) -> tuple[list[int], list[float]]:
    """Counts in ``BINS`` equal bins from 0 to ε_max and the bins' edges; margins (N,)."""
    # float32 margins may exceed eps_max by rounding: they belong in the last bin.
    counts, edges = np.histogram(np.clip(margins, 0, eps_max), bins=BINS, range=(0, eps_max))
    return counts.tolist(), edges.tolist()


def _text(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()

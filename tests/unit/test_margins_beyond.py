"""Margins of mma go beyond d_max, to 1.05·d_max: counted, drawn and exported as far as they go (paper, Fig. 9)."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ima_dist.figures import png
from ima_dist.figures.interactive.margins import histogram_figure, share_figure
from ima_dist.report.csvfiles import margins_csv
from ima_dist.results.margin_audit import summarise
from ima_dist.results.margin_bins import bin_edges, histogram
from ima_dist.rundir.run import Run
from tests.support import workers

D_MAX = 0.02


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """mma on the moons with so small a d_max that most samples are farther from the boundary."""
    options = {"method": "mma", "eps_max": D_MAX, "epochs": 2, "data__subset": 100, "attack__steps": 3}
    config, made = workers.start_run(tmp_path_factory.mktemp("mma") / "run", "moons", **options)
    workers.train(config, made.path)
    return Run(made)


def test_the_history_counts_them_beyond_d_max(run):
    margins = run.margins[1]["margin"].to_numpy()
    row = run.history[-1]
    assert len(row["margin_histogram"]) == 53  # bins as wide as those of ima
    assert row["margin_histogram"] == histogram(margins, D_MAX)[0].tolist()
    beyond = int((margins > D_MAX * (1 + 1e-6)).sum())
    assert beyond > 50
    assert sum(row["margin_histogram"][50:]) == beyond
    assert row["margin_quantiles"][-1] == pytest.approx(margins.max(), abs=1.05 * D_MAX / 10_000)
    assert row["margin_quantiles"][-1] > 1.04 * D_MAX


def test_they_are_exported_and_drawn(run, tmp_path):
    table = pd.read_csv(io.StringIO(margins_csv([run])))
    assert table["high"].max() == pytest.approx(1.06 * D_MAX)
    assert table["samples"].sum() == 100
    assert table["samples"][table["low"] >= D_MAX * (1 - 1e-9)].sum() > 50

    history = run.margin_history
    figure = histogram_figure(history, D_MAX, "linf", 2, slider=True)
    bars = figure.data[0]
    assert sum(n for x, n in zip(bars.x, bars.y, strict=True) if x > D_MAX) > 50
    assert figure.layout.xaxis.range[1] == pytest.approx(1.06 * D_MAX)
    assert [shape.x0 for shape in figure.layout.shapes] == [D_MAX]  # where d_max is
    means = share_figure(history, D_MAX, 2)
    assert means.layout.yaxis.range[1] >= max(means.data[1].y)
    png.margin_histogram(tmp_path / "m.png", run.margins[1]["margin"].to_numpy(), D_MAX)
    assert (tmp_path / "m.png").stat().st_size > 0


def test_histories_of_earlier_versions_are_drawn_as_before():
    """They have 50 bins, the last with all that lies beyond; a run may have been continued by this version."""
    old = {"epoch": 1, "margin_mean": 0.1, "share_at_max": 0.0, "margin_histogram": [2] * 50}
    figure = histogram_figure([old], 0.3, "linf", 1)
    assert list(figure.data[0].x) == pytest.approx(((np.arange(50) + 0.5) * 0.006).tolist())
    assert figure.layout.xaxis.range[1] == pytest.approx(0.3)
    assert len(figure.layout.shapes) == 0
    both = [old, {**old, "epoch": 2, "margin_histogram": [2] * 53}]
    figure = histogram_figure(both, 0.3, "linf", 1, slider=True)
    assert [len(step["args"][0]["x"][0]) for step in figure.layout.sliders[0].steps] == [50, 53]


def test_bins_by_hand():
    counts, edges = histogram(np.array([0.0, 0.005, 0.299, 0.3, np.float32(0.3) * 1.0000001]), 0.3)
    assert (len(edges), counts[0], counts[-1]) == (51, 2, 3)
    counts, edges = histogram(np.array([0.3, 0.301, 0.315]), 0.3)
    assert (len(edges), counts[50:].tolist()) == (54, [2, 0, 1])
    assert histogram(np.zeros(0), 0.3)[0].sum() == 0
    assert np.allclose(bin_edges(53, 0.3)[[0, 50, 53]], [0, 0.3, 0.318])


def test_the_audit_caps_distances_where_margins_end():
    table = pa.table({"correct": [True, True], "margin": [0.315, 0.1], "distance": [0.9, 0.1]})
    assert summarise(table, 0.3).mean_distance == pytest.approx((0.315 + 0.1) / 2)
    assert summarise(table.slice(1), 0.3).mean_distance == pytest.approx(0.1)

"""Margins beyond ε_max: those of mma go to 1.05·d_max (paper, Fig. 9), those of AME as far as they grow."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ima_dist.dashboard.parts import Plot
from ima_dist.figures import png
from ima_dist.figures.interactive.margins import histogram_figure, share_figure
from ima_dist.recommend import recommend
from ima_dist.report.csvfiles import margins_csv
from ima_dist.results.margin_audit import summarise
from ima_dist.results.margin_bins import bin_edges, histogram, joined
from ima_dist.rundir.run import Run
from tests.support import workers
from tests.support.views import grid, show

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
    assert [shape.x0 for shape in figure.layout.shapes] == [0.3]  # where ε_max is
    both = [old, {**old, "epoch": 2, "margin_histogram": [2] * 53}]
    figure = histogram_figure(both, 0.3, "linf", 1, slider=True)
    assert [len(step["args"][0]["x"][0]) for step in figure.layout.sliders[0].steps] == [50, 53]


def test_multiples_of_the_step_lie_within_bars():
    """Rounding would spread the margins of one size over the bins on both sides."""
    assert joined(50, 0.3, 0.075) == [i for i in range(51) if i != 25]  # 12.5 and 37.5 lie within bins
    assert joined(50, 0.3, 0.01) == [i for i in range(51) if i % 5 or i in (0, 50)]
    assert joined(50, 0.3, 0.006) == joined(50, 0.3, None) == list(range(51))
    counts = [0] * 50
    counts[24], counts[25], counts[12] = 49, 40, 130
    row = {"epoch": 4, "margin_mean": 0.1, "share_at_max": 0.1, "margin_histogram": counts}
    bars = histogram_figure([row], 0.3, "linf", 4, step=0.075).data[0]
    heights = {round(x, 6): y for x, y in zip(bars.x, bars.y, strict=True) if y}
    assert heights == {0.075: 130, 0.15: 89}
    assert sum(bars.width) == pytest.approx(0.3)


def test_bins_by_hand():
    counts, edges = histogram(np.array([0.0, 0.005, 0.299, 0.3, np.float32(0.3) * 1.0000001]), 0.3)
    assert (len(edges), counts[0], counts[-1]) == (51, 2, 3)
    counts, edges = histogram(np.array([0.3, 0.301, 0.315]), 0.3)
    assert (len(edges), counts[50:].tolist()) == (54, [2, 0, 1])
    assert histogram(np.zeros(0), 0.3)[0].sum() == 0
    assert np.allclose(bin_edges(53, 0.3)[[0, 50, 53]], [0, 0.3, 0.318])


@pytest.fixture(scope="module")
def unbounded(tmp_path_factory):
    """AME with a Δε almost as large as ε_max, so that margins grow beyond it."""
    options = {"margin_rule": "ame", "eps_max": D_MAX, "delta_eps": 0.97 * D_MAX, "epochs": 3, "data__subset": 100}
    config, made = workers.start_run(tmp_path_factory.mktemp("ame") / "run", "moons", attack__steps=3, **options)
    workers.train(config, made.path)
    return Run(made)


def test_without_a_largest_margin_nothing_is_at_the_maximum(unbounded, tmp_path, monkeypatch):
    margins, history = unbounded.margins[1]["margin"].to_numpy(), unbounded.margin_history
    assert margins.max() > 2 * D_MAX
    assert [row["share_at_max"] for row in history] == [None] * 3
    row = history[-1]
    assert row["margin_histogram"] == histogram(margins, D_MAX)[0].tolist()
    assert len(row["margin_histogram"]) == math.ceil(50 * margins.max() / D_MAX - 1e-6)
    assert row["margin_quantiles"][-1] == pytest.approx(margins.max(), rel=1e-3)

    figure = histogram_figure(history, D_MAX, "linf", 3)
    assert len(figure.layout.shapes) == 0  # no line at ε_max
    assert sum(figure.data[0].y) == 100
    assert [trace.name for trace in share_figure(history, D_MAX, 3).data] == ["mean margin / ε_max"]
    labels = []
    monkeypatch.setattr(png, "_save", lambda fig, path: labels.append([line.get_label() for line in fig.axes[0].lines]))
    png.margin_histogram(tmp_path / "m.png", margins, D_MAX, bounded=unbounded.config.margins_bounded)
    png.margin_bars(tmp_path / "m.png", row, D_MAX)
    assert [len(found) for found in labels] == [1, 1]
    assert all(found[0].startswith("mean") for found in labels)
    table = pd.read_csv(io.StringIO(margins_csv([unbounded])))
    assert table["samples"].sum() == 100
    parts = show(unbounded.dir.path.parent, "margins", "?run=run")
    captions = [part.caption for part in parts if isinstance(part, Plot)]
    assert any(words.startswith("After epoch 3: mean") for words in captions)
    assert not any("ε_max" in words for words in captions)
    assert "at ε_max" not in grid(parts, "by-class")[0]
    found = recommend(margins, np.ones(100, bool), None)
    assert found.share_at_max is None


def test_bars_of_rows_with_more_bins_are_drawn_where_they_are(run, tmp_path, monkeypatch):
    ends = []
    monkeypatch.setattr(png, "_save", lambda fig, path: ends.append(fig.axes[0].patches[0].get_data().edges[-1]))
    png.margin_bars(tmp_path / "m.png", run.history[-1], D_MAX)
    assert ends == [pytest.approx(1.06 * D_MAX)]


def test_the_audit_caps_distances_where_margins_end():
    table = pa.table({"correct": [True, True], "margin": [0.315, 0.1], "distance": [0.9, 0.1]})
    assert summarise(table, 0.3).mean_distance == pytest.approx((0.315 + 0.1) / 2)
    assert summarise(table.slice(1), 0.3).mean_distance == pytest.approx(0.1)

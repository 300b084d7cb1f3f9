"""Whatever looks at the margins of all samples holds only a piece of them at a time."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from ima_dist.data.types import Resident, Split
from ima_dist.evaluation.artefacts import extremes
from ima_dist.figures.png import draw_all
from ima_dist.margins import snapshots
from ima_dist.margins.store import MarginStore
from ima_dist.report.csvfiles import margins_csv
from ima_dist.rundir import run as run_module
from ima_dist.rundir.run import Run
from ima_dist.tracking import recorder, tables
from ima_dist.tracking.recorder import Recorder
from ima_dist.worker.tasks import _picking
from tests.support.summaries import make_run

PIECE, SAMPLES, CLASSES = 500, 60_000, 3


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A run with margins in 120 pieces; its margins and labels."""
    monkeypatch.setattr(snapshots, "ROWS", PIECE)
    monkeypatch.setattr(tables, "ROWS", PIECE)
    monkeypatch.setattr(run_module, "MOST_MARGINS", 10 * PIECE)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = make_run(tmp_path / "runs" / "one", "moons", {0.1: 0.5}, method="ima")
    margins, labels = save(run, 1)
    return run, margins, labels


def save(run, epoch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    margins = torch.rand(SAMPLES, generator=generator) * run.config().eps_max
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    store = MarginStore(SAMPLES, 0.0)
    everything = torch.arange(SAMPLES)
    right = margins > 0.03
    store.propose(everything, margins, correct=right, crossed=right)
    store.reduce()
    store.save(run.margins_dir / f"epoch={epoch:04d}", labels)
    row = {
        "epoch": epoch,
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "margin_mean": store.mean(),
        "share_at_max": 0.0,
        "margin_histogram": store.histogram(50, run.config().eps_max).tolist(),
    }
    run.write_history([*run.read_history(), row])
    return margins.numpy(), labels.numpy()


class Peak:
    """The most bytes that Python, NumPy and Arrow hold at once beyond those at the start."""

    def __enter__(self):
        self.arrow = self.before = pa.total_allocated_bytes()
        tracemalloc.start()
        return self

    def look(self, pieces):
        for piece in pieces:
            self.arrow = max(self.arrow, pa.total_allocated_bytes())
            yield piece

    def __exit__(self, *_):
        self.python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    @property
    def bytes(self):
        return self.python + self.arrow - self.before


def test_they_are_copied_into_the_data_set_in_pieces(many, monkeypatch):
    run, margins, labels = many
    whole = run.newest_margins()[1].nbytes
    genuine = Run.over_margins
    with Peak() as peak:
        monkeypatch.setattr(
            Run, "over_margins", lambda run, take: genuine(run, lambda e, n, pieces: take(e, n, peak.look(pieces)))
        )
        tables.write_run(run.path.parent, run)
    monkeypatch.undo()
    assert peak.bytes < whole / 2
    found = pd.read_parquet(tables.file_of(run.path.parent, "margins", "one"))
    assert found["index"].tolist() == list(range(SAMPLES))
    assert np.array_equal(found["margin"].to_numpy(np.float32), margins)
    assert np.array_equal(found["label"], labels)
    assert set(found["epoch"]) == {1}
    assert set(found["run"]) == {"one"}


def test_they_are_copied_once_at_the_end(many, monkeypatch):
    run, root = many[0], many[0].path.parent
    written = []
    genuine = tables._write_margins
    monkeypatch.setattr(tables, "_write_margins", lambda root, run: (written.append(run.name), genuine(root, run)))
    sink = recorder._DataSet(root, run)
    for epoch in (2, 3):
        save(run, epoch, seed=epoch)
        sink.update()
        assert len(pd.read_parquet(root / "dataset" / "history")) == epoch
    assert written == []
    # Rows without their margins do not count as up to date.
    assert pd.read_parquet(root / "dataset" / "runs")["stamp"].tolist() == [""]
    with Recorder(run, root):
        pass
    assert written == ["one"]
    assert set(pd.read_parquet(root / "dataset" / "margins")["epoch"]) == {3}
    assert pd.read_parquet(root / "dataset" / "runs")["stamp"].tolist() == [tables.stamp_of(run)]


def test_the_smallest_and_largest_are_found_in_pieces(many):
    run, margins, labels = many
    train = Resident(Split(torch.rand(SAMPLES, 2), torch.from_numpy(labels)), "cpu", torch.float32, None)
    whole = run.newest_margins()[1]
    with Peak() as peak:
        found = run.over_margins(lambda epoch, samples, pieces: extremes(train, peak.look(pieces), None))
    assert peak.bytes < whole.nbytes / 2
    for label in range(CLASSES):
        own = np.flatnonzero((labels == label) & (margins > 0.03))
        order = own[np.lexsort((own, margins[own]))]
        largest = own[np.lexsort((own, -margins[own]))]
        mine = found["label"] == label
        assert found["index"][mine & ~found["largest"]].tolist() == order[:6].tolist()
        assert found["index"][mine & found["largest"]].tolist() == largest[:6].tolist()
    assert np.array_equal(found["margin"], margins[found["index"]])
    assert np.array_equal(found["sample"], train.x[found["index"]].numpy())


def test_those_to_audit_are_picked_in_pieces(many):
    run, margins, _ = many
    chosen = torch.tensor([0, 499, 500, 31_234, SAMPLES - 1])
    epoch, picked = run.over_margins(_picking(chosen))
    assert epoch == 1
    assert picked["index"].to_pylist() == chosen.tolist()
    assert np.array_equal(picked["margin"].to_numpy(), margins[chosen])


def test_pictures_and_reports_need_no_table_of_all(many, monkeypatch):
    run, margins, _ = many
    whole = Run(run)
    assert whole.margins is None
    assert whole.margin_count == SAMPLES
    counts = pd.read_csv(io.StringIO(margins_csv([whole])))["samples"].tolist()
    assert counts == np.histogram(margins, bins=50, range=(0, run.config().eps_max))[0].tolist()
    assert (run.figures_dir / "margins.png") in draw_all(whole)
    monkeypatch.setattr(run_module, "MOST_MARGINS", SAMPLES)
    assert Run(run).margins[1].num_rows == SAMPLES

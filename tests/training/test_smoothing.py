"""Certificates of a trained network: spread over workers, continued, shown apart from the network's own accuracies."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from ima_dist import evaluate, measure, train
from ima_dist.config.errors import ConfigError
from ima_dist.config.values import with_options
from ima_dist.dashboard.parts import Grid, Note, Plot
from ima_dist.dashboard.views import certificates as view
from ima_dist.plans.pending import next_command
from ima_dist.report.write import write_report
from ima_dist.results import certificates
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection
from tests.support import workers
from tests.support.evaluating import evaluate_on_worker
from tests.support.inline import without_ray

OPTIONS = {"data__subset": 400, "dtype": "float64", "eval__attacks": ("smoothing",), "smoothing__sigma": 0.3}


def test_one_and_two_workers_and_an_interruption_give_the_same_certificates(tmp_path):
    config, whole = workers.start_run(tmp_path / "whole", "moons", **OPTIONS, smoothing__draws=50)
    evaluate_on_worker(config, whole.path, batch_size=1000)
    expected = pq.read_table(whole.certificates_path)
    assert expected["index"].to_pylist() == list(range(40))

    _, run = workers.start_run(tmp_path / "run", "moons", **OPTIONS, smoothing__draws=50)
    workers.run_on(2, evaluate_on_worker, config, run.path, 30)
    assert list(run.path.rglob("from-*.parquet"))
    assert not run.certificates_path.exists()
    workers.run_on(2, evaluate_on_worker, config, run.path)
    assert pq.read_table(run.certificates_path).equals(expected)
    assert run.summary()["certificates"] == whole.summary()["certificates"]
    assert not (run.path / "evaluation").exists()

    # Other settings have files of their own, and stand beside these.
    other = with_options(config, {"smoothing.draws": 60})
    evaluate_on_worker(other, run.path)
    assert [entry.draws for entry in certificates.entries(run.summary())] == [50, 60]
    assert pq.read_table(run.certificates_path).num_rows == 80
    evaluate_on_worker(other, run.path)
    assert pq.read_table(run.certificates_path).num_rows == 80


def test_a_run_is_certified_and_shown_as_what_it_is(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    path = tmp_path / "runs" / "smooth"
    words = "--method rand --rand.kind gaussian --norm l2 --eps-max 0.25 --data.subset 1000 --epochs 6 --eval.steps 2"
    asked = ["--optimizer.lr", "0.01", "--eval.noise", "0,0.1,0.2", "--device", "cpu", "--out", str(path)]
    assert train.main(["moons", *words.split(), *asked]) == 0
    run = RunDir(path)
    before = run.points()
    capsys.readouterr()
    certify = ["--attack", "smoothing", "--smoothing.draws", "200", "--eval.samples", "40", "--device", "cpu"]
    assert evaluate.main([str(path), *certify]) == 0
    out = capsys.readouterr().out
    assert "Smoothed classifier, not the network itself (L2): Gaussian noise with σ = 0.25, 200 draws" in out
    assert "certified accuracy" in out
    assert run.points() == before

    (entry,) = certificates.shown(Run(run))
    assert (entry.samples, entry.order, entry.radii) == (40, "stratified", (0.0, 0.1, 0.2))
    assert 0.7 < entry.certified[0] <= entry.accuracy + 0.05
    assert entry.certified[2] < entry.certified[0]
    assert len(pq.read_table(run.certificates_path)) == 40

    # A job that asked for this has nothing left to do; one that asks for more draws has.
    config = with_options(run.config(), {"eval.attacks": ("smoothing",), "eval.samples": 40, "smoothing.draws": 200})
    assert next_command(config, path, [6]) is None
    more = next_command(with_options(config, {"smoothing.draws": 300}), path, [6])
    assert more is not None
    assert more[1][more[1].index("--smoothing.draws") + 1] == "300"
    assert evaluate.main([str(path), *more[1][1:]]) == 0
    assert [found.draws for found in certificates.entries(run.summary())] == [200, 300]

    runs = Collection(tmp_path / "runs")
    runs.refresh()
    parts = view.show(runs, {"runs": ["smooth"]})
    plot, grid = (next(part for part in parts if isinstance(part, kind)) for kind in (Plot, Grid))
    assert next(iter(plot.figure.data[0].x)) == 0
    assert plot.figure.data[0].y[0] == pytest.approx(entry.certified[0])
    assert grid.rows[0]["share"] == pytest.approx(entry.accuracy)
    assert isinstance(view.show(runs, {"runs": []})[0], Note)

    write_report([path], tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Smoothed classifier, not the network itself: Gaussian noise with σ = 0.25, 200 draws" in html
    assert f"<td>{entry.certified[2]:.4f} (" in html

    with pytest.raises(ConfigError, match="certifies and does not attack"):
        measure(str(path), np.zeros((1, 2)), [0], noise=[0.1], attacks="smoothing", box=None)

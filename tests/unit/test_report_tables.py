"""Which of the paper's tables a run belongs to, and what stands there."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from ima_dist import job
from ima_dist.config.presets import PRESETS, make_config, options_of, preset_config, train_command
from ima_dist.report.tables import make_tables, setting_differences
from ima_dist.report.write import collect
from ima_dist.results import paper
from ima_dist.results.statistics import wilson_interval
from ima_dist.rundir.curves import noise_key
from ima_dist.rundir.files import write_json, write_parquet
from tests.support.jobfiles import TABLES, table_file
from tests.support.reports import read_csv, report_on
from tests.support.summaries import curve, make_run, outcomes, outcomes_table


def test_titles_are_those_of_the_job_files():
    for number in TABLES:
        assert job.read_job(table_file(number)).title == paper.title(number)


@pytest.mark.parametrize("number", TABLES)
@pytest.mark.parametrize("scale", [None, "small"])
def test_every_row_of_every_job_finds_its_place(number, scale):
    read = job.read_job(table_file(number), scale)
    for name, config in read.rows.items():
        if read.epochs:
            whole = job.read_job(table_file(number)).epochs
            places = [paper.epoch_row_name(config, e) for e in read.epochs]
            assert places == [(number, f"epsmax={e}de") for e in whole]
        else:
            assert paper.rows_of(config)[number] == name


def test_runs_that_the_paper_lacks_have_no_place():
    for preset, options in (
        ("moons", {"norm": "l2"}),
        ("moons", {"beta": 0.1}),
        ("moons", {"eps_max": 0.2}),
        ("moons", {"method": "adv", "eps_max": 0.2}),
        ("moons", {"data.source": "mine:load"}),
        ("fashion_mnist", {"beta": 0.4}),
        ("mnist", {"method": "ce"}),
    ):
        assert paper.rows_of(make_config(preset, options)) == {}, options
    assert paper.rows_of(make_config("mnist", {"seed": 5, "method": "mma"})) == {8: "mma-0.45-sd5"}
    assert paper.epoch_row_name(make_config("fashion_mnist"), 15) == (17, "epsmax=15de")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_command_makes_the_configuration_again(preset, norm):
    own = {"norm": norm, "method": "ce", "epochs": 3, "data.subset": 50, "eps_max": 0.2, "eval.noise": (0.0, 0.1)}
    config = make_config(preset, own)
    assert make_config(preset, options_of(config)) == config
    assert setting_differences(preset_config(config)) == ()
    assert train_command(config, "a b").endswith("--out 'a b'")


def test_seeds_are_averaged_and_repeats_kept_apart(tmp_path):
    paths = []
    for i, (seed, accuracy) in enumerate([(0, 0.8), (1, 0.9), (2, 0.7), (1, 0.5)]):
        paths.append(make_run(tmp_path / f"run{i}", "moons", {0.1: accuracy}, seed=seed).path)
    paths.append(make_run(tmp_path / "short", "moons", {0.1: 0.1}, seed=3, epochs=3).path)
    (table,) = make_tables(collect(paths)[0])
    lines = [line for line in table.lines if line.results]
    first, second, reduced = [line.ours["test", 0.1] for line in lines]
    assert [len(line.results) for line in lines] == [3, 1, 1]
    assert first.accuracy == pytest.approx(0.8)
    assert first.spread == pytest.approx(statistics.stdev([0.8, 0.9, 0.7]))
    # For the samples and, with t of two degrees of freedom, the seeds together.
    assert first.interval is not None
    low = first.accuracy - wilson_interval(first.accuracy, 2000)[0]
    half = 4.302653 * statistics.stdev([0.8, 0.9, 0.7]) / math.sqrt(3)
    assert first.interval == pytest.approx((0.8 - math.hypot(low, half), 1.0))
    assert second.interval == wilson_interval(0.5, 2000)
    assert (second.accuracy, second.spread) == (0.5, None)
    assert (reduced.accuracy, lines[2].differs) == (0.1, ("epochs 3 (paper: 30)",))
    assert lines[0].differs == ()
    page = report_on(tmp_path / "out", tmp_path)
    assert page.row("ima seeds 0, 1, 2")[3 + 2].startswith("0.8000 ± 0.1000[")


def test_what_differs_from_the_paper_is_said(tmp_path):
    fewer = {"samples": 300, "steps": 20, "step_scale": 2.0}
    run = make_run(tmp_path / "a", "fashion_mnist", {0.1: 0.5}, fewer, method="adv", eps_max=0.2, batch_size=64)
    (table,) = make_tables(collect([run.path])[0])
    (line,) = [line for line in table.lines if line.results]
    assert line.row == "adv0.2"
    assert line.differs == (
        "batch_size 64 (paper: 128)",
        "300 of 10,000 test samples",
        "eval.steps 20 (paper: 100)",
        "eval.step_scale 2 (preset: 4)",
    )


def test_own_data_are_shown_but_not_beside_the_paper(tmp_path):
    run = make_run(tmp_path / "own", "moons", {0.1: 0.5}, data__source="mine:load")
    (table,) = make_tables(collect([run.path])[0])
    assert table.number is None
    assert [(line.row, line.theirs) for line in table.lines] == [("ima", {})]
    assert table.lines[0].differs == ("data.source mine:load",)
    page = report_on(tmp_path / "out", run.path)
    assert any("Own data: mine:load" in h for h in page.texts["h2"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["curves.csv", "report.html"]


def test_table_15_is_the_size_of_differences(tmp_path):
    for beta, accuracy in ((0.1, 0.3), (0.5, 0.4), (0.9, 0.5)):
        make_run(tmp_path / f"b{beta}", "fashion_mnist", {0.1: accuracy}, {"samples": 10000}, beta=beta)
    report_on(tmp_path / "out", tmp_path)
    rows = {(r["row"], float(r["noise"])): r for r in read_csv(tmp_path / "out" / "table15.csv")}
    assert float(rows["difference", 0.1]["ours"]) == pytest.approx(0.1)
    assert [float(rows["difference", x]["paper"]) for x in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)] == [
        0.0098, 0.0252, 0.0566, 0.0670, 0.0855, 0.0796, 0.0783,
    ]  # fmt: skip
    assert {"table02.csv", "table14.csv"} < {p.name for p in (tmp_path / "out").iterdir()}


def test_the_usual_beta_alone_makes_no_table_of_betas(tmp_path):
    run = make_run(tmp_path / "run", "fashion_mnist", {0.1: 0.5})
    assert [table.number for table in make_tables(collect([run.path])[0])] == [2]


def test_epochs_stand_beside_those_of_the_paper(tmp_path):
    run = make_run(tmp_path / "run", "fashion_mnist", {})
    curves = [c for e in (10, 60) for c in curve({0.1: e / 100}, norm="linf", epoch=e, samples=10000)]
    write_json(run.summary_path, {"status": "finished", "curves": curves})
    run.write_history([{"epoch": 10, "train_accuracy": 0.95, "val_accuracy": 0.91}])
    report_on(tmp_path / "out", run.path)
    rows = {(r["row"], r["split"], float(r["noise"])): r for r in read_csv(tmp_path / "out" / "table17.csv")}
    assert float(rows["epsmax=10de", "test", 0.1]["ours"]) == 0.1
    assert float(rows["epsmax=10de", "validation", 0.0]["ours"]) == 0.91
    assert float(rows["epsmax=10de", "validation", 0.0]["paper"]) == 0.9165
    assert float(rows["epsmax=60de", "test", 0.1]["ours"]) == 0.6
    assert rows["epsmax=30de", "test", 0.1]["ours"] == ""
    assert float(rows["epsmax=30de", "test", 0.1]["paper"]) == 0.6021


def test_spsa_goes_to_its_own_table_with_a_verdict(tmp_path):
    run = make_run(tmp_path / "run", "mnist", {})
    few = {"norm": "linf", "epoch": 60, "samples": 100}
    curves = curve({0.1: 0.9}, norm="linf", epoch=60, attack="pgd-mma", samples=10000, step_scale=2.5)
    curves += curve({0.1: 0.5}, **few)
    curves += curve({0.1: 0.5}, **few, attack="spsa", spsa_samples=128)
    write_json(run.summary_path, {"status": "finished", "curves": curves})
    write_parquet(
        run.outcomes_path,
        outcomes_table(*(outcomes(a, 0.1, {0: True, 1: False}, epoch=60) for a in ("pgd100", "spsa"))),
    )
    page = report_on(tmp_path / "out", run.path)
    tables = {t.number: t for t in make_tables(collect([run.path])[0])}
    ours = {n: [(line.attack, line.differs) for line in t.lines if line.results] for n, t in tables.items()}
    assert ours[8] == [("pgd-mma", ())]
    assert dict(ours[9]) == {"spsa": ("eval.spsa_samples 128 (paper: 2018)",), "pgd100": ()}
    assert any("SPSA is not stronger than PGD on the same 2 samples" in text for text in page.texts["p"])
    guessed = [cell for cell in paper.cells(table=9, method="ima_s0", attack="spsa") if cell.legible == "guess"]
    assert f"{guessed[1].accuracy:.4f}*" in page.texts["body"][0]


def test_levels_are_the_papers_in_single_precision_too(tmp_path):
    run = make_run(tmp_path / "run", "moons", {float(np.float32(0.1)): 0.5})
    (table,) = make_tables(collect([run.path])[0])
    assert table.lines[0].ours.keys() <= table.lines[0].theirs.keys()
    assert table.lines[0].ours.keys() == {("test", noise_key(0.1))}

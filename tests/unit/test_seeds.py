"""Which runs are averaged into one candidate: one for each seed, attacked alike; and how candidates are paired."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ima_dist.config.errors import ConfigError
from ima_dist.dashboard.views import tradeoff
from ima_dist.report.tables import make_tables
from ima_dist.results.candidates import best_text, rows_of_directory, sweep_table
from ima_dist.results.seeds import Network, by_sample, candidates_of, one_per_seed
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_parquet
from ima_dist.rundir.finding import finished_runs
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection
from tests.support.summaries import curve, make_run

LEVELS = (0.0, 0.1)


def run_at(path: Path, accuracies: tuple[float, ...], age: int = 0, of_curve=None, **options) -> RunDir:
    """A finished run whose results were written ``age`` seconds before those of the others."""
    run = make_run(path, "moons", dict(zip(LEVELS, accuracies, strict=True)), of_curve, **options)
    os.utime(run.summary_path, (1e9 - age, 1e9 - age))
    return run


def add_curve(run: RunDir, accuracies: tuple[float, ...], **changes) -> None:
    entries = curve(dict(zip(LEVELS, accuracies, strict=True)), norm="linf", epoch=run.config().epochs, **changes)
    write_json(run.summary_path, {**run.summary(), "curves": [*run.summary()["curves"], *entries]})


def test_three_runs_of_one_seed_are_one(tmp_path):
    for name, accuracy, age in (("old", 0.5, 20), ("newest", 0.8, 0), ("older", 0.6, 10)):
        run_at(tmp_path / name, (0.9, accuracy), age, seed=1)
    (row,) = rows_of_directory(tmp_path)[0]
    assert (row.seeds, len(row.networks)) == ({1}, 3)
    said = "3 runs have seed 1: newest counts, the newest with all noise levels; not old, older."
    table = sweep_table([row])
    assert re.search(r"pgd100 +1/1 +0\.9000 +0\.8000$", table, re.MULTILINE)
    assert "±" not in table
    assert f"all: {said}" in table
    text = best_text([row], 0.5)
    assert f"all: {said}" in text
    assert "Each candidate has one seed" in text
    # One that is newer still, but lacks a noise level, does not replace it.
    part = make_run(tmp_path / "part", "moons", {0.0: 0.9}, seed=1)
    assert part.summary_path.stat().st_mtime > 1e9
    (row,) = rows_of_directory(tmp_path)[0]
    assert "4 runs have seed 1: newest counts" in sweep_table([row])
    run_at(tmp_path / "other", (0.9, 0.6), seed=2)
    (row,) = rows_of_directory(tmp_path)[0]
    assert re.search(r"pgd100 +2/2 +0\.9000 ±0\.0000 +0\.7000 ±0\.1414$", sweep_table([row]), re.MULTILINE)


def test_protocols_are_not_pooled(tmp_path):
    run_at(tmp_path / "a", (0.9, 0.8), seed=0)
    run_at(tmp_path / "b", (0.9, 0.1), seed=1, of_curve={"steps": 5})
    both = run_at(tmp_path / "c", (0.9, 0.2), seed=2, of_curve={"steps": 5})
    add_curve(both, (0.9, 0.6))
    (row,) = rows_of_directory(tmp_path)[0]
    pairs, said = one_per_seed(row.networks, "pgd100")
    # Two seeds have either protocol: the stricter one, in which c has another row than the one shown for b.
    assert [(n.run.name, curve[0.1].share) for n, curve in pairs] == [("a", 0.8), ("c", 0.6)]
    assert said == ["Not counted, as not attacked with pgd100 in the same way: b."]
    run_at(tmp_path / "d", (0.9, 0.3), seed=3, of_curve={"steps": 5})
    (row,) = rows_of_directory(tmp_path)[0]
    pairs, said = one_per_seed(row.networks, "pgd100")
    assert [curve[0.1].share for _, curve in pairs] == [0.1, 0.2, 0.3]
    for changes in ({"version": 2}, {"order": "stratified"}, {"samples": 100}, {"step_scale": 2.0}):
        networks = [Network(Run(run_at(tmp_path / f"x{i}{changes}", (0.9, 0.5), seed=i, of_curve=of)), 30)
                    for i, of in enumerate(({}, changes))]  # fmt: skip
        assert len(one_per_seed(networks, "pgd100")[0]) == 1


def test_candidates_that_were_attacked_otherwise_are_left_out(tmp_path):
    for beta in (0.3, 0.5):
        run_at(tmp_path / f"b{beta}", (0.9, beta), beta=beta)
    run_at(tmp_path / "weak", (0.9, 0.99), beta=0.7, of_curve={"steps": 5})
    rows, _ = rows_of_directory(tmp_path)
    text = best_text(rows, 0.5)
    assert "Choice: beta=0.5" in text
    assert "beta=0.7 is left out: it was not attacked with pgd100 as most are (version=1 steps=100" in text
    # Fewer samples or noise levels are no other attack: the levels that all have are compared.
    more = run_at(tmp_path / "more", (0.9, 0.8), beta=0.9, of_curve={"samples": 100})
    entries = curve({0.2: 0.0}, norm="linf", epoch=30, samples=100)
    write_json(more.summary_path, {**more.summary(), "curves": [*more.summary()["curves"], *entries]})
    text = best_text(rows_of_directory(tmp_path)[0], 0.5)
    assert "Choice: beta=0.9" in text
    assert "Not all were attacked on the same test samples: 100; 2,000." in text
    assert re.search(r"beta=0.9 +1 .* 0\.8500 ", text)
    with pytest.raises(ConfigError, match=r"beta=\S+ has no accuracy at noise 0.5: it has 0, 0.1"):
        best_text(rows, 0.5, (0.5,))


def test_the_paper_s_word_on_averages_stands_where_they_choose(tmp_path):
    for beta in (0.3, 0.5):
        run_at(tmp_path / f"b{beta}", (1 - beta, beta), beta=beta)
    rows, _ = rows_of_directory(tmp_path)
    lines = best_text(rows, 0.1).splitlines()
    assert any("“clearly not a good measure of performance on robustness” (appendix E)" in line for line in lines)
    front = "Pareto set (no other is as good at every noise level and better at one): beta=0.3; beta=0.5."
    assert lines.index(front) < next(i for i, line in enumerate(lines) if line.startswith("Choice: "))
    named = best_text(rows, 0.1, (0.1,))
    assert "average" not in named
    assert "Pareto set (no other is as good at noise 0, 0.1 and better at one): beta=0.3; beta=0.5." in named


# ---- samples of two runs


def with_outcomes(run: RunDir, right: dict[float, np.ndarray], attack: str = "pgd100", **columns) -> RunDir:
    point = run.points()[0]
    parts = []
    for level, good in right.items():
        index = np.random.default_rng(0).permutation(len(good))  # in any order
        parts.append(
            pa.table(
                {
                    "index": index,
                    "attack": [attack] * len(good),
                    "loss": ["both"] * len(good),
                    "noise": np.full(len(good), np.float32(level), dtype=np.float64),
                    "epoch": np.full(len(good), point.epoch),
                    "label": np.ones(len(good), dtype=np.int64),
                    "prediction": good[index].astype(np.int64),
                    "protocol": [point.protocol] * len(good),
                    **columns,
                }
            )
        )
    write_parquet(run.outcomes_path, pa.concat_tables(parts))
    return run


def right(*wrong: int) -> np.ndarray:
    """Of 200 samples those in the first half are right, but for some."""
    found = np.arange(200) < 100
    found[list(wrong)] = False
    return found


def pair_of_runs(root: Path, outcomes: bool) -> list:
    """Two candidates; one is wrong on eight samples more than the other, and right on none more."""
    groups = []
    for beta, rest in ((0.3, right()), (0.5, right(*range(8)))):
        levels = {0.0: np.ones(200, bool), 0.1: rest}
        accuracies = tuple(float(levels[x].mean()) for x in LEVELS)
        run = run_at(root / f"b{beta}", accuracies, beta=beta, of_curve={"samples": 200})
        groups.append((f"β {beta}", [Network(Run(with_outcomes(run, levels) if outcomes else run), 30)]))
    return groups


def test_candidates_are_paired_by_sample(tmp_path):
    candidates = candidates_of(pair_of_runs(tmp_path / "paired", outcomes=True), "pgd100")[1]
    one, two = (candidate.area.by_sample for candidate in candidates)
    assert one is not None
    assert two is not None
    ((key, first),), ((other, second),) = one.items(), two.items()
    assert key == other
    assert np.flatnonzero(first != second).tolist() == list(range(8))
    rows, _ = rows_of_directory(tmp_path / "paired")
    assert "All other candidates with that accuracy differ from it by more than noise." in best_text(rows, 0.5)
    pair_of_runs(tmp_path / "alone", outcomes=False)
    rows, _ = rows_of_directory(tmp_path / "alone")
    assert "Equal to it within noise: beta=0.5." in best_text(rows, 0.5)


def test_outcomes_that_are_others_are_not_used(tmp_path):
    run = run_at(tmp_path / "a", (1.0, 0.5), of_curve={"samples": 200})
    network = Network(Run(run), 30)
    row = network.evaluations["pgd100", run.points()[0].protocol]
    levels = {0.0: np.ones(200, bool), 0.1: right()}

    def found(outcomes: dict[float, np.ndarray], **columns):
        with_outcomes(run, outcomes, **columns)
        return by_sample(network, row)

    assert by_sample(network, row) is None  # there are none
    key, read = found(levels)
    assert read[0.1].tolist() == right().tolist()
    assert found({**levels, 0.1: right(3)}) is None  # the accuracy is another
    assert found({0.0: levels[0.0]}) is None  # a level is missing
    assert found({0.0: np.ones(100, bool), 0.1: right()[:100]}) is None  # fewer samples
    assert found(levels, attack="worst") is None
    assert found(levels, protocol=["other"] * 200) is None
    assert found(levels, label=np.zeros(200, np.int64)) is None
    same, _ = found(levels)
    assert same == key
    run.outcomes_path.write_bytes(b"PAR1 damaged")
    assert by_sample(network, row) is None


# ---- relatives: the trade-off of the dashboard, and the report's tables


def test_the_dashboard_counts_one_run_of_a_seed_and_one_protocol(tmp_path):
    for name, accuracy, age in (("old", 0.5, 20), ("new", 0.8, 0)):
        run_at(tmp_path / name, (0.9, accuracy), age, seed=1)
    run_at(tmp_path / "weak", (0.9, 0.1), seed=2, of_curve={"steps": 5})
    run_at(tmp_path / "third", (0.9, 0.7), seed=3)
    runs = Collection(tmp_path)
    runs.refresh()
    parts = tradeoff.show(runs, {"experiment": "moons-linf", "attack": "pgd100", "level": "area", "least": 0.0})
    (row,) = next(part.rows for part in parts if getattr(part, "name", "") == "models")
    assert (row["seeds"], row["verdict"]) == (2, "best")
    assert row["robust"] == pytest.approx(0.825)
    said = " ".join(getattr(part, "text", "") for part in parts)
    assert "2 runs have seed 1: new counts, the newest with all noise levels; not old." in said
    assert "Not counted, as not attacked with pgd100 in the same way: weak." in said
    assert "clearly not a good measure" in said
    # One interval for samples and seeds.
    assert row["robust to"] - row["robust"] > 12.7 * 0.05 / 2 / np.sqrt(2) or row["robust to"] == 1


def test_the_report_keeps_protocols_apart(tmp_path):
    options = {
        "data__source": "mine:load",
        "model__factory": "mine:build",
        "eps_max": 0.1,
        "eval__noise": LEVELS,
        "name": "scans",
    }
    for seed, version in ((0, 1), (1, 1), (2, 2)):
        make_run(tmp_path / f"{seed}", "own", dict.fromkeys(LEVELS, 0.5), {"version": version}, seed=seed, **options)
    (table,) = make_tables(finished_runs([tmp_path])[0])
    assert sorted(len(line.results) for line in table.lines) == [1, 2]

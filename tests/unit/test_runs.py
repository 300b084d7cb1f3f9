"""A run as a value, the points of its curves, and finding runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ima_dist.config.attacks import ATTACKS
from ima_dist.config.errors import ConfigError
from ima_dist.rundir.curves import Point, attack_rows, epochs_of
from ima_dist.rundir.files import write_json, write_parquet
from ima_dist.rundir.finding import find_runs, finished_runs
from ima_dist.rundir.run import BOUNDARY, EXTREMES, NOISY, Run
from ima_dist.tracking.tables import make_dataset, root_of, write_run
from tests.support.summaries import curve, make_run, outcomes, outcomes_table


def entry(**changes: Any) -> dict[str, Any]:
    (found,) = curve({0.1: 0.5}, norm="linf", epoch=30)
    return {**found, **changes}


# ---- points --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"spsa_samples": 128}, {"accuracy": None, "steps": None}, {"later": [1, "x"]}])
def test_a_point_says_what_its_entry_says(more):
    given = entry(**more)
    assert Point.from_json(given).to_json() == given


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": "unheard-of"},
        {"attack": []},
        {"loss": None},
        {"accuracy": 1.5},
        {"accuracy": "0.5"},
        {"noise": -0.1},
        {"noise": None},
        {"samples": 0},
        {"samples": True},
        {"epoch": None},
        {"steps": "many"},
    ],
)
def test_what_is_no_point_is_refused_with_one_sentence(tmp_path, changes):
    run = make_run(tmp_path / "run", "moons", {})
    write_json(run.summary_path, {"status": "finished", "curves": [entry(**changes)]})
    with pytest.raises(ConfigError, match=r"summary\.json is damaged \(curves\): restore it from a copy"):
        run.points()


@pytest.mark.parametrize("curves", [7, "text", {"a": 1}, [None], [[]], [{}]])
def test_curves_that_are_no_list_of_entries_are_refused(tmp_path, curves):
    run = make_run(tmp_path / "run", "moons", {})
    write_json(run.summary_path, {"curves": curves})
    with pytest.raises(ConfigError, match="damaged"):
        run.points()


def test_rows_hold_one_network_and_levels_without_rounding_errors():
    level = float(np.float32(0.1))
    points = [
        Point.from_json(entry(noise=noise, accuracy=accuracy, **more))
        for noise, accuracy, more in (
            (0.0, 0.9, {"epoch": 10}),
            (level, 0.8, {}),
            (0.2, None, {}),
            (0.3, 0.7, {"loss": "ce"}),
            (0.3, 0.7, {"split": "validation"}),
            (0.3, 0.6, {"attack": "worst", "epoch": 10}),
        )
    ]
    assert {a: list(row) for a, row in attack_rows(points).items()} == {"pgd100": [0.1], "worst": [0.3]}
    assert {a: list(row) for a, row in attack_rows(points, 10).items()} == {"pgd100": [0.0], "worst": [0.3]}
    assert epochs_of(points) == [10, 30]
    assert attack_rows([]) == {}


# ---- one run -------------------------------------------------------------------------------------------


def test_a_run_without_its_parts_is_empty_and_sound(tmp_path):
    run = Run.open(make_run(tmp_path / "run", "moons", {}).path)
    assert (run.name, run.status, run.points, run.history, run.equilibrium) == ("run", "finished", [], [], [])
    parts = ("margins", "outcomes", "scores", "audit", "boundary", "noisy", "extremes", "equilibrium_picture")
    assert [getattr(run, part) for part in parts] == [None] * len(parts)
    assert run.damaged("summary", "points", "history", *parts) == []
    with pytest.raises(ConfigError, match="is not a run directory"):
        Run.open(tmp_path)


def test_damaged_parts_are_named_and_left_out(tmp_path):
    dir = make_run(tmp_path / "run", "moons", {0.1: 0.5})
    dir.examples_dir.mkdir()
    for path in (dir.history_path, dir.outcomes_path, dir.audit_path, dir.noisy_path, dir.boundary_path):
        path.write_bytes(b"PK damaged")
    run = Run(dir)
    parts = ("history", "outcomes", "audit", "noisy", "boundary")
    assert [not getattr(run, part) for part in parts] == [True] * len(parts)
    for part, text in zip(parts, run.damaged(*parts), strict=True):
        assert f"/{part}." in text
        assert "\n" not in text
    assert run.points[0].accuracy == 0.5
    assert run.problems.keys() == set(parts)
    dir.summary_path.write_text('{"status": "fini')
    again = Run(dir)
    assert (again.status, again.points) == ("damaged", [])


@pytest.mark.parametrize("value", [np.zeros(()), np.zeros(3), np.zeros((2, 2))])
def test_arrays_of_other_shapes_are_named(tmp_path, value):
    dir = make_run(tmp_path / "run", "moons", {})
    dir.examples_dir.mkdir()
    for path, names in ((dir.boundary_path, BOUNDARY), (dir.noisy_path, NOISY), (dir.extremes_path, EXTREMES)):
        np.savez(path, **dict.fromkeys(names, value))
    damaged = Run(dir).damaged("boundary", "noisy", "extremes")
    assert len(damaged) == 3
    assert all("shapes do not match" in text for text in damaged)


def test_a_run_stays_as_it_was_read(tmp_path):
    dir = make_run(tmp_path / "run", "moons", {0.1: 0.5})
    run = Run(dir)
    assert run.points[0].accuracy == 0.5
    write_json(dir.summary_path, {"status": "running"})
    assert (run.status, len(run.points)) == ("finished", 1)
    assert Run(dir).status == "running"


def test_what_leads_out_of_the_run_is_not_read(tmp_path):
    dir, other = (make_run(tmp_path / name, "moons", {0.1: 0.5}) for name in ("run", "other"))
    write_parquet(other.outcomes_path, outcomes_table(outcomes("pgd100", 0.1, {0: True})))
    dir.outcomes_path.symlink_to(other.outcomes_path)
    dir.config_path.unlink()
    dir.config_path.symlink_to(other.config_path)
    run = Run(dir)
    assert run.outcomes is None
    assert "leads out of" in run.problems["outcomes"]
    with pytest.raises(ConfigError, match=r"config\.yaml leads out of"):
        Run.open(dir.path)


# ---- many runs -----------------------------------------------------------------------------------------


def names(root: Path) -> list[str]:
    return [run.path.relative_to(root).as_posix() for run in find_runs(root)[0]]


def test_runs_are_found_wherever_they_are_and_our_own_files_are_no_problem(tmp_path):
    for name in ("b", "a/deep/run", "sweep/one", "tensorboard", ".hidden", "dataset/mine"):
        make_run(tmp_path / name, "moons", {0.1: 0.5})
    for root in (tmp_path / "sweep", tmp_path / "a"):
        make_dataset(root)
        (root / "tensorboard").mkdir()
        (root / "tensorboard" / "events.parquet").touch()
    write_run(tmp_path / "sweep", find_runs(tmp_path / "sweep")[0][0])
    (tmp_path / "b" / "inner").mkdir()
    (tmp_path / "b" / "inner" / "config.yaml").touch()  # a run is not searched further
    assert names(tmp_path) == ["a/deep/run", "b", "dataset/mine", "sweep/one", "tensorboard"]
    assert find_runs(tmp_path)[1] == []
    assert names(tmp_path / "b") == ["."]


def test_what_is_not_searched_is_named(tmp_path):
    make_run(tmp_path / "runs" / "a", "moons", {0.1: 0.5})
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "stray.parquet").touch()
    found, problems = find_runs(tmp_path / "runs")
    assert [run.path.name for run in found] == ["a"]
    assert [next(n for n in ("link", "stray") if n in text) for text in problems] == ["link", "stray"]
    assert find_runs(tmp_path / "none") == ([], [f"{tmp_path / 'none'} is not a directory."])


def test_finished_runs_are_named_below_what_they_share(tmp_path):
    for name in ("x/a/one", "x/b/two"):
        make_run(tmp_path / name, "moons", {0.1: 0.5})
    write_json(make_run(tmp_path / "x/c", "moons", {}).summary_path, {"status": "running"})
    make_run(tmp_path / "x/d", "moons", {})
    paths = [tmp_path / "x" / "b" / "two", tmp_path / "x", tmp_path / "nothing"]
    runs, problems = finished_runs(paths)
    assert [run.name for run in runs] == ["b/two", "a/one"]
    assert [text.split(" (")[0] for text in problems] == [
        f"{tmp_path / 'nothing'} is not a directory.",
        f"{tmp_path / 'x/c'} is not finished",
        f"{tmp_path / 'x/d'} has no accuracy under attack: run python -m ima_dist.evaluate on it.",
    ]


def test_a_users_folder_called_dataset_is_not_taken_for_ours(tmp_path):
    images = tmp_path / "project" / "dataset"
    (images / "cats").mkdir(parents=True)
    run = make_run(tmp_path / "project" / "results" / "run", "moons", {})
    assert root_of(run, tmp_path / "runs") is None
    make_dataset(run.path.parent)
    assert root_of(run, tmp_path / "runs") == run.path.parent
    assert os.listdir(images) == ["cats"]


def test_every_attack_may_stand_in_a_summary():
    for attack in ATTACKS:
        assert Point.from_json(entry(attack=attack)).attack == attack

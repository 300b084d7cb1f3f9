"""Which samples are attacked, and which evaluation of several is shown."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch

from ima_dist.config.attacks import ATTACK_TABLE
from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.config.values import from_dict, to_dict, with_options
from ima_dist.data.choosing import to_attack
from ima_dist.data.types import Split
from ima_dist.evaluation.margin_audit import to_audit
from ima_dist.evaluation.outcomes import is_shown, outcomes_table, points_of, save
from ima_dist.plans.jobfile import PACKAGED, read_job
from ima_dist.plans.pending import next_command
from ima_dist.plans.sweepfile import is_sweep, read_sweep
from ima_dist.results.comparison import comparison_table
from ima_dist.results.table import robustness_table
from ima_dist.rundir.curves import Point, attack_rows, different_samples, samples_label
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet, write_json, write_parquet
from ima_dist.rundir.run import Run
from ima_dist.tracking.tables import curves_table
from ima_dist.tracking.tables import points_of as points_in

# Of training, validation and test set, without a subset.
SIZES = {
    "moons": (20000, 2000, 2000),
    "fashion_mnist": (54000, 6000, 10000),
    "mnist": (54000, 6000, 10000),
    "svhn": (65931, 7326, 26032),
    "cifar10": (45000, 5000, 10000),
    "covid_ct": (2022, 60, 400),
    "pathmnist": (89996, 10004, 7180),
}


def sorted_split(*sizes: int) -> Split:
    """A split sorted by class."""
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Split(torch.arange(len(y), dtype=torch.float64)[:, None], y)


# ---- the choice ----------------------------------------------------------------------------------------


def test_a_sorted_set_is_attacked_in_proportion_to_its_classes() -> None:
    split = sorted_split(600, 300, 100)
    for count, expected in ((10, [6, 3, 1]), (20, [12, 6, 2]), (100, [60, 30, 10])):
        chosen = to_attack(split, count, "stratified")
        assert torch.bincount(split.y[chosen]).tolist() == expected
        assert torch.equal(chosen, chosen.unique())
    assert torch.bincount(split.y[to_attack(split, 10, "first")]).tolist() == [10]


@pytest.mark.parametrize("sizes", [(900, 9, 1), (5, 5, 5, 5), (1, 2000), (0, 7, 0, 3), (40,)])
def test_a_choice_contains_every_smaller_one_and_every_class(sizes: tuple[int, ...]) -> None:
    split = sorted_split(*sizes)
    present, smaller = sum(map(bool, sizes)), set()
    for count in [*range(1, min(len(split), 60)), len(split), len(split) + 1]:
        found = to_attack(split, count, "stratified")
        assert len(found) == min(count, len(split))
        assert smaller <= set(found.tolist())
        smaller = set(found.tolist())
        assert len(split.y[found].unique()) == min(count, present)
    assert torch.equal(to_attack(split, None, "stratified"), torch.arange(len(split)))
    assert len(to_attack(split.take(torch.arange(0)), 5, "stratified")) == 0


def test_the_choice_depends_on_the_samples_and_not_on_how_they_are_stored() -> None:
    split = sorted_split(50, 50)
    chosen = to_attack(split, 20, "stratified")
    assert torch.equal(chosen, to_attack(split.view(torch.arange(100)), 20, "stratified"))
    other = Split(split.stored + 1, split.y)
    assert not torch.equal(chosen, to_attack(other, 20, "stratified"))


def test_the_audit_takes_the_same_samples_for_every_seed() -> None:
    split = sorted_split(90, 10)
    configs = [make_config("moons", {"seed": seed}) for seed in (0, 1)]
    first, second = (to_audit(split, 20, config) for config in configs)
    assert torch.equal(first, second)
    assert torch.bincount(split.y[first]).tolist() == [18, 2]
    before = to_audit(split, 20, with_options(configs[0], {"eval.order": "first"}))
    assert torch.equal(before, torch.randperm(100, generator=torch.Generator().manual_seed(0))[:20].sort().values)


# ---- the option ----------------------------------------------------------------------------------------


def test_new_runs_are_stratified_and_earlier_ones_first() -> None:
    config = make_config("moons")
    assert config.eval.order == "stratified"
    functions = {"name": "mine", "data.source": "mine:load", "model.factory": "mine:build"}
    assert make_config("own", {**functions, "eps_max": 0.1, "eval.noise": (0.1,)}).eval.order == "stratified"
    tree = to_dict(config)
    del tree["eval"]["order"]
    earlier = from_dict(tree)
    assert earlier.eval.order == "first"
    assert earlier.fingerprint() == config.fingerprint()


def test_the_papers_first_100_samples_stay() -> None:
    for file in PACKAGED.glob("table*.yaml"):
        orders = {config.eval.order for config in read_job(file).rows.values()}
        assert orders == {"first" if file.stem in ("table09", "table12") else "stratified"}, file.stem


@pytest.mark.parametrize("file", sorted(PACKAGED.glob("*.yaml")), ids=lambda file: file.stem)
def test_files_ask_for_no_more_samples_than_a_scale_leaves(file: Any) -> None:
    read: Any = read_sweep if is_sweep(file) else read_job
    for scale in ("small", "tiny"):
        if scale not in file.read_text():
            continue
        job = read(file, scale)
        configs = [job.any_point().config] if is_sweep(file) else list(job.rows.values())
        for config in configs:
            train, val, test = SIZES[config.preset]
            classes = {"moons": 2, "covid_ct": 2, "pathmnist": 9}.get(config.preset, 10)
            share = (config.data.subset or train) / train
            left, left_val = (min(n, max(round(n * share), 10 * classes)) for n in (test, val))
            assert (config.eval.samples or 0) <= left, scale
            assert config.eval.val_noise is None or config.eval.val_samples <= left_val, scale


# ---- several evaluations of one network ----------------------------------------------------------------


def config_of(steps: int, samples: int | None = None, **options: Any) -> Config:
    given = {"epochs": 1, "eval.steps": steps, "eval.samples": samples, "eval.noise": [0.0, 0.1]}
    return make_config("moons", {**given, "eval.attacks": ["worst"], **options})


def evaluated(run: RunDir, config: Config, wrong: int, size: int = 50) -> list[Point]:
    """Save an evaluation in which the first ``wrong`` attacked samples are wrong; returns its points."""
    split = sorted_split(size // 2, size // 2)
    chosen = to_attack(split, config.eval.samples, config.eval.order)
    y = split.y[chosen]
    predicted = torch.where(torch.arange(len(y)) < wrong, 1 - y, y)
    found = {("both", level): predicted for level in config.eval.noise}
    table = outcomes_table("worst", found, chosen, y, config, 1)
    save(run, table, config, {"status": "finished", "test_samples": size})
    return points_of(table, config, size)


def shown(run: RunDir) -> dict[float, float | None]:
    return {level: point.accuracy for level, point in attack_rows(run.points())["worst"].items()}


def test_a_weaker_evaluation_leaves_the_stronger_one(tmp_path) -> None:
    strong, weak = config_of(100), config_of(5, 20)
    run = RunDir.create(strong, tmp_path / "run")
    evaluated(run, strong, 30)
    points = evaluated(run, weak, 1)
    assert not is_shown(run, points)
    assert shown(run) == {0.0: 0.4, 0.1: 0.4}
    found = Run(run)
    assert found.outcomes is not None
    assert found.outcomes.num_rows == 2 * 50
    assert read_parquet(run.outcomes_path).num_rows == 2 * (50 + 20)
    text = robustness_table(run.points(), None, None, 50)
    assert "worst  0.4000  0.4000" in text
    assert "Also kept: worst (5 steps, samples: 20, stratified): 0.9500 at 0, 0.9500 at 0.1" in text
    # Neither has to be done again.
    for config in (strong, weak):
        assert next_command(config, run.path, (1,)) is None


def test_a_stronger_evaluation_is_shown_whatever_was_done_last(tmp_path) -> None:
    run = RunDir.create(config_of(5), tmp_path / "run")
    evaluated(run, config_of(5), 0)
    assert is_shown(run, evaluated(run, config_of(100, 20), 10))
    assert shown(run) == {0.0: 0.5, 0.1: 0.5}  # most steps, though of fewer samples
    evaluated(run, config_of(100), 10)
    assert shown(run) == {0.0: 0.8, 0.1: 0.8}
    evaluated(run, config_of(5, **{"eval.noise": [0.1, 0.3]}), 0)
    assert shown(run) == {0.0: 0.8, 0.1: 0.8}  # no row of two protocols


def test_further_noise_levels_of_one_protocol_join_its_row(tmp_path) -> None:
    config = config_of(100)
    run = RunDir.create(config, tmp_path / "run")
    evaluated(run, config, 10)
    evaluated(run, config_of(100, **{"eval.noise": [0.1, 0.3]}), 20)
    assert shown(run) == {0.0: 0.8, 0.1: 0.6, 0.3: 0.6}
    assert read_parquet(run.outcomes_path).num_rows == 3 * 50
    assert next_command(config, run.path, (1,)) is None


def test_a_row_evaluated_at_other_noise_levels_is_evaluated(tmp_path) -> None:
    config, other = config_of(100), config_of(100, **{"eval.noise": [0.0, 0.2]})
    run = RunDir.create(other, tmp_path / "run")
    evaluated(run, other, 10)
    module, words = next_command(config, run.path, (1,)) or ("", [])
    assert module == "ima_dist.evaluate"
    assert words[words.index("--eval.noise") + 1] == "0.0,0.1"
    assert words[words.index("--eval.order") + 1] == "stratified"


def test_the_same_number_of_other_samples_is_another_evaluation(tmp_path) -> None:
    config = config_of(100, 20)
    first = with_options(config, {"eval.order": "first"})
    run = RunDir.create(first, tmp_path / "run")
    evaluated(run, first, 10)
    assert samples_label(attack_rows(run.points())["worst"], 50) == "the first 20"
    assert next_command(first, run.path, (1,)) is None
    assert next_command(config, run.path, (1,)) is not None
    evaluated(run, config, 5)
    assert shown(run) == {0.0: 0.75, 0.1: 0.75}
    assert {point.order for point in run.points()} == {"first", "stratified"}
    assert "20, stratified" in comparison_table({"ce": Run(run)}, None)


def test_order_does_not_matter_where_all_samples_are_attacked(tmp_path) -> None:
    config = config_of(100)
    run = RunDir.create(config, tmp_path / "run")
    evaluated(run, config, 10)
    first = with_options(config, {"eval.order": "first"})
    assert next_command(first, run.path, (1,)) is None
    evaluated(run, first, 10)
    assert len(run.points()) == 2


def test_outcomes_of_an_earlier_version_stay_beside_new_ones(tmp_path) -> None:
    config = config_of(100, 20, **{"eval.order": "first"})
    run = RunDir.create(config, tmp_path / "run")
    evaluated(run, config, 10)
    old = read_parquet(run.outcomes_path).drop_columns("protocol")
    write_parquet(run.outcomes_path, old)
    found = Run(run).outcomes
    assert found is not None
    assert found.equals(old)
    write_json(run.summary_path, {**run.summary(), "curves": [p.to_json() for p in run.points()]})
    evaluated(run, config_of(5), 0)
    table = Run(run).outcomes
    assert table is not None
    assert table.drop_columns("protocol").equals(old)


def test_entries_of_summary_json_are_as_before_unless_the_option_is_used(tmp_path) -> None:
    run = RunDir.create(config_of(100), tmp_path / "run")
    evaluated(run, config_of(100), 10)
    evaluated(run, config_of(100, 20), 10)
    whole, some = (entry for entry in run.summary()["curves"] if entry["noise"] == 0.0)
    assert set(some) - set(whole) == {"order"}
    assert whole["version"] == ATTACK_TABLE["worst"].version > 1
    found = curves_table(Run(run))
    assert points_in(found) == run.points()
    earlier: pa.Table = found.drop_columns(["order", "version"])
    assert {point.order for point in points_in(earlier)} == {"first"}


def test_a_comparison_of_different_samples_says_so(tmp_path) -> None:
    run = RunDir.create(config_of(100), tmp_path / "run")
    points = [evaluated(run, config_of(100, count), 3) for count in (10, 20)]
    rows = [attack_rows(found)["worst"] for found in points]
    assert different_samples([rows[0], rows[0]]) is None
    said = different_samples(rows)
    assert said == "Not all were attacked on the same test samples: 10, stratified; 20, stratified."

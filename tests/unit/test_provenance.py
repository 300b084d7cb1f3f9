"""What we attribute to the paper: where settings come from, what differs, and what is ours."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml

from benchmarks import validation_size
from ima_dist import job
from ima_dist.attacks import curve, worst
from ima_dist.attacks.minimal import STARTS
from ima_dist.config.__main__ import configs, page
from ima_dist.config.attacks import describe_attack, protocol
from ima_dist.config.choices import CHOICES
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import PRESETS, make_config, train_command
from ima_dist.config.provenance import NAMES, OPTIONS, holds, not_the_papers, origin_of, preset_says
from ima_dist.config.schema import METHODS, NORMS
from ima_dist.config.values import flatten, option_values, with_options
from ima_dist.data.load import load
from ima_dist.evaluation.outcomes import outcomes_table, points_of
from ima_dist.plans.jobfile import PACKAGED, read_job
from ima_dist.plans.sweepfile import READ_BY
from ima_dist.report.tables import setting_differences
from ima_dist.results import paper, white_noise
from ima_dist.results.comparison import comparison_table
from ima_dist.rundir.curves import Point
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.rundir.run import Run
from ima_dist.tracking.tables import curves_table
from ima_dist.tracking.tables import points_of as points_in
from tests.support.commands import ROOT
from tests.support.datafiles import write_idx
from tests.support.reports import report_on
from tests.support.summaries import make_run

# Options that only these presets read.
OF_PRESETS = {"data.noise": ("moons",), "data.val_size": ("fashion_mnist", "mnist", "svhn", "cifar10")}


def read_options(config: Any) -> set[str]:
    """The options that results of this configuration depend on."""
    tree = config.model_dump(exclude={"eval"})
    names = {name for name in {**flatten(tree), "data.args": None, "model.args": None} if name in known_options()}
    names |= {name for name in option_values(config) if name.startswith("eval.")}
    unread = {name for name, methods in READ_BY.items() if config.method not in methods}
    unread |= {name for name, presets in OF_PRESETS.items() if config.preset not in presets}
    return names - unread - set(NAMES)


def known_options() -> set[str]:
    """The options that weights and margins depend on, and those of the evaluation."""
    found = {"data.args", "model.args"}
    config = make_config("moons")
    for prefix, part in (("", config), *((f"{n}.", getattr(config, n)) for n in ("data", "model", "optimizer"))):
        found |= {prefix + n for n, field in type(part).model_fields.items() if field.json_schema_extra is None}
    parts = ("attack", "trades", "rand", "iaat", "fat", "nfgsm", "eval", "smoothing")
    for part in parts:
        found |= {f"{part}.{n}" for n in type(getattr(config, part)).model_fields}
    return found - {"data", "model", "optimizer", *parts}


# ---- where settings come from --------------------------------------------------------------------------


def test_every_value_of_every_preset_has_an_origin():
    for config in configs():
        missing = {name for name in read_options(config) if origin_of(name, config) is None}
        assert missing == set(), (config.preset, config.method, config.norm)


def test_no_entry_is_idle_or_misspelt():
    every = list(configs())
    for entry in OPTIONS:
        assert set(entry.options) <= known_options(), entry
        for name in entry.options:
            assert any(holds(entry, name, config) for config in every), (name, entry)
    for entry in (*OPTIONS, *CHOICES):
        assert set(entry.presets) <= set(PRESETS)
        assert set(entry.methods) <= set(METHODS)
        assert set(entry.norms) <= set(NORMS)


def test_the_page_is_current():
    text = (ROOT / "docs/settings.md").read_text()
    assert text == page(), "run: python -m ima_dist.config > docs/settings.md"


def test_what_the_paper_leaves_open_is_in_the_list():
    ours = "\n".join(not_the_papers(configs()))
    for words in (
        "data.noise", "inverse_lambda", "DDN: cross-entropy", "Loss of rand", "optimizer.weight_decay: none",
        "mirrored edges", "evaluation mode", "eval.step_scale", "No model selection", "untrained", "grey",
        "attack.boundary_side", "no bias", "SVHN's classes", "start from one ξ", "Instance norm has no parameters",
        "inferred: a tenth",
    ):  # fmt: skip
        assert words in ours, words
    for norm, preset in (("l2", "fashion_mnist"), ("linf", "svhn"), ("l2", "svhn")):
        for method in ("trades", "mma"):
            assert origin_of("eps_max", make_config(preset, {"norm": norm, "method": method})) == "ours"
    assert not_the_papers([make_config("moons", {"data.source": "mine:load"})]) == []


def test_the_report_says_paper_only_where_the_paper_gives_the_value():
    changed = {"data.noise": 0.1, "epochs": 3, "attack.boundary_side": "inside"}
    assert setting_differences(make_config("moons", changed)) == (
        "attack.boundary_side inside (preset: midpoint)", "data.noise 0.1 (preset: 0.06)", "epochs 3 (paper: 30)",
    )  # fmt: skip
    cifar = make_config("cifar10", {"batch_size": 64, "epochs": 3})
    assert setting_differences(cifar) == ("batch_size 64 (preset: 128)", "epochs 3 (paper: 200)")
    trades = make_config("moons", {"method": "trades", "trades.inverse_lambda": 1.0})
    assert setting_differences(trades) == ("trades.inverse_lambda 1 (preset: 6)",)
    assert preset_says("eps_max", make_config("moons", {"data.source": "mine:load"})) == "preset"


# ---- validation sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "size", "images"), [
    ("fashion_mnist", 6000, 60000), ("mnist", 6000, 60000), ("svhn", 7326, 73257), ("cifar10", 5000, 50000),
])  # fmt: skip
def test_a_tenth_is_held_out(preset, size, images):
    assert make_config(preset).data.val_size == size == round(images / 10)


def test_the_printed_accuracies_allow_a_tenth_and_not_5000():
    for preset, images in validation_size.TRAINING_IMAGES.items():
        assert all(validation_size.fits(value, round(images / 10)) for value in validation_size.printed(preset))
    impossible = {
        preset: [value for value in validation_size.printed(preset) if not validation_size.fits(value, 5000)]
        for preset in validation_size.TRAINING_IMAGES
    }
    assert impossible == {
        "fashion_mnist": [0.8953, 0.9013, 0.9087, 0.9115, 0.9165],
        "svhn": [0.8983, 0.9095, 0.9173, 0.9229, 0.9257, 0.9293],
        "cifar10": [],
    }


def test_the_script_prints_them(capsys):
    validation_size.main()
    printed = capsys.readouterr().out
    assert "| Fashion-MNIST | 60,000 | 6,000 | 6,000 | 12 | 5 | 0 | 25 of 2501 (1.0%) |" in printed
    assert "SVHN, no k/5000: 0.8983, 0.9095, 0.9173, 0.9229, 0.9257, 0.9293" in printed


def test_a_run_from_before_the_option_keeps_its_split(tmp_path):
    """Checkpoints are told apart by fingerprint and digest of the data: with both equal, the run continues."""
    options = {"data.dir": str(write_idx(tmp_path / "data", n=240)), "epochs": 2}
    started = make_config("fashion_mnist", {**options, "data.val_size": 5000})
    run = RunDir.create(started, tmp_path / "run")
    tree = yaml.safe_load(run.config_path.read_text())
    del tree["data"]["val_size"]
    run.config_path.write_text(yaml.safe_dump(tree))
    resumed, new = run.config(), make_config("fashion_mnist", options)
    splits = {config.data.val_size: load(config.data, 0) for config in (started, resumed, new)}
    assert {size: (len(data.train), len(data.val)) for size, data in splits.items()} == {
        5000: (220, 20),
        6000: (216, 24),
    }
    assert resumed.fingerprint() == started.fingerprint() != new.fingerprint()
    assert load(resumed.data, 0).digest() == load(started.data, 0).digest() != load(new.data, 0).digest()
    assert "--data.val-size 5000" in train_command(resumed, "out")
    assert "data.val_size 5000 (preset: 6000)" in setting_differences(resumed)


def test_a_job_takes_up_its_runs_from_before_the_option(capsys):
    assert job.main(["table02", "--rows", "ce", "--list", "--data.val-size", "5000"]) == 0
    assert "fashion_mnist-ce-linf-seed0-c8a46166" in capsys.readouterr().out
    assert job.main(["table02", "--rows", "ce", "--list"]) == 0
    assert "fashion_mnist-ce-linf-seed0-4a7fc1d2" in capsys.readouterr().out


def test_other_presets_refuse_the_option():
    with pytest.raises(ConfigError, match=r"--data\.val-size goes with fashion_mnist, svhn, mnist, cifar10"):
        make_config("moons", {"data.val_size": 100})


# ---- rows that the paper copied, and open questions ----------------------------------------------------


def test_rows_of_mma_that_the_paper_copied_are_marked(tmp_path):
    for number, words in ((7, "100,000 steps"), (8, "40 PGD steps"), (10, "50,000 steps"), (11, "weight decay 2e-4")):
        for name, config in read_job(PACKAGED / f"table{number:02d}.yaml").rows.items():
            said = paper.copied(config)
            assert (said is not None) == name.startswith("mma")
            assert said is None or (words in said and said in setting_differences(config, ["seed"]))
    assert paper.copied(make_config("fashion_mnist", {"method": "mma"})) is None
    assert paper.copied(make_config("mnist", {"method": "mma", "data.source": "mine:load"})) is None
    run = make_run(tmp_path / "mma", "mnist", {0.1: 0.5}, method="mma")
    assert "mma: trained with the settings of ima; the paper's" in comparison_table({"mma": Run(run)}, 8)
    page = report_on(tmp_path / "out", run.path)
    assert "100,000 steps and 40 PGD steps" in page.row("mma-0.45-sd0 seed 0")[0]


@pytest.mark.parametrize(("main", "by_epoch", "last"), [(10, 20, "epsmax=200de"), (11, 21, "epsmax=200de")])
def test_the_last_rows_of_tables_20_and_21_are_of_seed_1(main, by_epoch, last):
    """The same digits, though one table names the MMA paper's attack and the other 100-PGD: both attacks run."""

    def row(table: int, method: str) -> dict[float, float]:
        return {c.noise: c.accuracy for c in paper.cells(table=table, method=method, split="test")}

    assert row(by_epoch, last) == row(main, "ima_s1") != row(main, "ima_s0")
    first, second = (read_job(PACKAGED / f"table{number}.yaml") for number in (main, by_epoch))
    assert second.rows["ima_s1"].seed == 1
    assert second.rows["ima_s1"].fingerprint() == first.rows["ima_s1"].fingerprint()
    for read in (first, second):
        assert {attack for config in read.rows.values() for attack in config.eval.attacks} == {"pgd-mma", "pgd100"}


# ---- the attack worst ----------------------------------------------------------------------------------


def test_the_sentence_on_worst_says_what_the_code_does():
    config = make_config("fashion_mnist")
    assert "FMN along the walls of the box, a fifth as many steps from each of nine starts" in describe_attack(
        {"attack": "worst", **protocol("worst", config)}
    )
    assert (curve.FMN_SHARE, STARTS) == (1 / 5, 9)
    assert "a fifth of 100 steps from each of nine starts" in describe_attack(
        {"attack": "minimal", **protocol("minimal", config)}
    )
    entry = {"attack": "worst", **protocol("worst", config)}
    sentence = describe_attack(entry)
    numbers = {2: "two", 3: "three", 5: "five"}
    assert f"{numbers[signature(worst).parameters['rivals'].default]} nearest wrong classes" in sentence
    assert "100 steps of PGD with α = 4 for each loss, cross-entropy and margin" in sentence
    assert "as many steps shared by the three" in sentence
    assert "from each of two opposite starts" in sentence

    def passes(steps: int) -> int:
        count = 0

        def network(x: torch.Tensor) -> torch.Tensor:
            """Four classes that no noise confuses."""
            nonlocal count
            count += len(x)
            return torch.cat([x.flatten(1) + 100, *[x.flatten(1)] * 3], dim=1)

        module = torch.nn.Identity()
        module.forward = network  # type: ignore[method-assign]
        worst(module, torch.zeros(1, 1), torch.tensor([0]), [0.1], norm="linf", steps=steps)
        return count

    # For each of two losses, and from each of two starts: every step more is one pass more.
    assert passes(60) - passes(30) == (2 + 2) * 30


# ---- white noise ---------------------------------------------------------------------------------------


def white_noise_points(before: list[int], after: list[int], **options: Any) -> list[Point]:
    config = make_config("covid_ct", {"method": "ce", "eval.attacks": ["white-noise"], "eval.noise": [0.0, 0.05]})
    config = with_options(config, options)
    y = torch.zeros(len(before), dtype=torch.int64)
    found = {("both", 0.0): torch.tensor(before), ("both", 0.05): torch.tensor(after)}
    table = outcomes_table("white-noise", found, torch.arange(len(y)), y, config, config.epochs)
    return points_of(table.take(pa.array(range(2 * len(y))[::-1])), config, len(y))


def test_right_answers_that_white_noise_turns_wrong_are_counted_apart(tmp_path):
    # 17 of 400 are wrong without noise, as in Table 6; noise turns 11 right ones wrong, and 5 wrong ones right.
    points = white_noise_points([1] * 17 + [0] * 383, [0] * 5 + [1] * 12 + [1] * 11 + [0] * 372)
    noisy = next(point for point in points if point.noise > 0)
    assert noisy.turned_wrong == 0.0275
    assert noisy.accuracy == 377 / 400
    assert noisy.to_json()["turned_wrong"] == 0.0275
    assert Point.from_json(noisy.to_json()) == noisy
    clean = next(point for point in points if point.noise == 0)
    assert "turned_wrong" not in clean.to_json()
    run = make_run(tmp_path / "run", "covid_ct", {}, method="ce")
    write_json(run.summary_path, {**run.summary(), "curves": [point.to_json() for point in points]})
    assert points_in(curves_table(Run(run))) == points
    report_on(tmp_path / "out", run.path)
    config = make_config("covid_ct", {"method": "ce"})
    said = "White noise turns right answers wrong: 0.0275 at 0.05, 11 of 400 samples"
    assert white_noise.describe(points, config) == f"{said} (paper, appendix A: 0.0275)."
    assert f"{said} (paper, appendix A: 0.0275)." in (tmp_path / "out/report.html").read_text()
    assert white_noise.describe(points, make_config("covid_ct")) == f"{said}."
    assert white_noise.describe([clean], config) is None


def test_the_papers_share_is_one_of_all_test_samples():
    assert [k for k in range(401) if round(k / 400, 4) == 0.0275] == [11]
    right = round(0.9575 * 400)
    assert not [k for k in range(right + 1) if round(k / right, 4) == 0.0275]


def test_appendix_a_has_a_job():
    (config,) = read_job(PACKAGED / "appendix_a.yaml").rows.values()
    assert (config.preset, config.method) == ("covid_ct", "ce")
    assert (config.eval.attacks, config.eval.noise) == (("white-noise",), (0.0, 0.05))
    assert config.fingerprint() == read_job(PACKAGED / "table06.yaml").rows["ce"].fingerprint()

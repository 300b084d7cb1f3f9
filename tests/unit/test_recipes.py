"""Recipes: sets of option values, beneath the user's options and above the preset's."""

from __future__ import annotations

import pytest
import yaml

from ima_dist import train
from ima_dist.config import recipe
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.values import with_options
from ima_dist.plans.jobfile import read_job
from ima_dist.plans.sweepfile import read_sweep
from ima_dist.rundir.directory import RunDir
from tests.support.commands import ROOT


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A recipe of its own, which changes three options."""
    file = tmp_path / "recipes" / "mine.yaml"
    file.parent.mkdir()
    options = {"beta": 0.25, "attack.steps": 7, "batch_size": 64}
    file.write_text(yaml.safe_dump({"about": "a trial", "source": "this test", "options": options}))
    monkeypatch.setattr(recipe, "_PLACE", file.parent)
    recipe.read_recipe.cache_clear()
    yield options
    recipe.read_recipe.cache_clear()


@pytest.mark.parametrize("name", recipe.recipe_names())
def test_every_recipe_says_where_it_comes_from_and_is_described(name):
    found = recipe.read_recipe(name)
    assert found.about
    assert found.source
    assert f"`{name}`" in (ROOT / "docs" / "training.md").read_text()
    make_config("moons", {"recipe": name})


def test_what_is_given_wins_over_the_recipe_and_that_over_the_preset(mine):
    config = make_config("cifar10", {"recipe": "mine", "attack.steps": 9})
    assert (config.beta, config.attack.steps, config.batch_size, config.epochs) == (0.25, 9, 64, 200)
    typed_out = make_config("cifar10", {**mine, "attack.steps": 9})
    assert config == typed_out
    assert config.fingerprint() == typed_out.fingerprint()
    assert "recipe" not in config.model_dump()


def test_the_paper_is_the_preset():
    assert make_config("cifar10", {"recipe": "paper"}) == make_config("cifar10")


def test_an_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match=r"--recipe must be one of .*, not 'papr' \(did you mean paper\?\)\."):
        make_config("moons", {"recipe": "papr"})


def test_the_command_line_takes_a_recipe(mine, capsys):
    assert train.main(["moons", "--recipe", "mine", "--beta", "0.3", "--show-config"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["*", "--beta", "0.3", "0.5"] in [words[:4] for words in shown]
    assert ["--attack.steps", "7", "20"] in [words[:3] for words in shown]
    assert train.main(["moons", "--recipe", "other", "--show-config"]) == 2


def test_a_run_stores_the_options_and_refuses_another_recipe(mine, tmp_path):
    run = RunDir.create(make_config("moons", {"recipe": "mine"}), tmp_path / "run")
    assert yaml.safe_load((run.path / "config.yaml").read_text())["attack"]["steps"] == 7
    assert train.resumed(run, "moons", {"recipe": "mine"}) == run.config()
    other = RunDir.create(make_config("moons"), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"was started with another --attack.steps, --batch-size, --beta"):
        train.resumed(other, "moons", {"recipe": "mine"})


def test_job_and_sweep_files_take_recipes(mine, tmp_path):
    job = tmp_path / "job.yaml"
    rows = {"usual": None, "better": {"recipe": "mine"}}
    job.write_text(yaml.safe_dump({"title": "two", "preset": "moons", "options": {"beta": 0.6}, "rows": rows}))
    found = read_job(job).rows
    assert found["better"] == with_options(found["usual"], {"attack.steps": 7, "batch_size": 64})
    sweep = tmp_path / "sweep.yaml"
    space = {"recipe": ["mine"], "beta": [0.4, 0.5]}
    sweep.write_text(yaml.safe_dump({"title": "a few", "preset": "moons", "sweep": space}))
    points = read_sweep(sweep).points
    assert [(p.values["recipe"], p.config.beta, p.config.attack.steps) for p in points] == [
        ("mine", 0.4, 7), ("mine", 0.5, 7),
    ]  # fmt: skip

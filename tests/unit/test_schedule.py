"""The learning rate over a training, against torch's schedulers; options of the optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as theirs

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config, options_of, train_command
from ima_dist.config.values import as_flags
from ima_dist.plans.sweepfile import read_sweep
from ima_dist.training.network import learning_rate, make_optimizer

EPOCHS, STEPS = 6, 5


def rates(preset: str = "moons", **options):
    given = {f"optimizer.{name}": value for name, value in options.items()}
    config = make_config(preset, {"epochs": EPOCHS, "optimizer.lr": 0.1, **given})
    return [learning_rate(config, epoch, step, STEPS) for epoch in range(EPOCHS) for step in range(STEPS)]


def torchs(build):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, found = build(optimizer), []
    for _ in range(EPOCHS * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warmed(optimizer):
    rise = theirs.LinearLR(optimizer, start_factor=1 / 10, total_iters=9)
    wave = theirs.CosineAnnealingLR(optimizer, T_max=EPOCHS * STEPS - 10)
    return theirs.SequentialLR(optimizer, [rise, wave], milestones=[10])


@pytest.mark.parametrize(
    ("options", "build"),
    [
        ({"schedule": "cosine"}, lambda o: theirs.CosineAnnealingLR(o, T_max=EPOCHS * STEPS)),
        ({"schedule": "cosine", "warmup": 2.0}, warmed),
        ({"schedule": "one-cycle"}, lambda o: theirs.OneCycleLR(o, 0.1, EPOCHS * STEPS, cycle_momentum=False)),
        ({"schedule": "steps:2,5"}, lambda o: theirs.MultiStepLR(o, [2 * STEPS, 5 * STEPS])),
        ({"schedule": "steps:50%,90%:0.3"}, lambda o: theirs.MultiStepLR(o, [15, 27], gamma=0.3)),
        ({"halve_every": 2}, lambda o: theirs.StepLR(o, 2 * STEPS, gamma=0.5)),
    ],
)
def test_the_rate_is_that_of_torchs_scheduler(options, build):
    assert rates(**options) == pytest.approx(torchs(build), rel=1e-9)


def test_a_warm_up_ends_at_the_rate_itself():
    assert rates(warmup=0.6)[:4] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])
    assert set(rates()) == {0.1}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_even_the_shortest_training_has_rates(steps):
    for schedule in ("cosine", "one-cycle", "steps:50%"):
        config = make_config("moons", {"epochs": 1, "optimizer.schedule": schedule})
        found = [learning_rate(config, 0, step, steps) for step in range(steps)]
        assert all(0 < rate <= config.optimizer.lr for rate in found), schedule


def test_a_schedule_replaces_the_presets_halving():
    assert make_config("cifar10").optimizer.halve_every == 25
    for schedule in ("cosine", "constant"):
        config = make_config("cifar10", {"optimizer.schedule": schedule})
        assert config.optimizer.halve_every is None
        assert make_config("cifar10", options_of(config)) == config
        assert f"--optimizer.schedule {schedule}" in train_command(config, "out")
    halved = make_config("moons", {"recipe": "pang2021", "optimizer.halve_every": 5})
    assert (halved.optimizer.schedule, halved.optimizer.halve_every) == ("constant", 5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"schedule": "cosine", "halve_every": 3}, "exclude each other: give only one"),
        ({"schedule": "one-cycle", "warmup": 1.0}, "leave out --optimizer.warmup"),
        ({"schedule": "cosine", "warmup": 30.0}, "below the number of epochs, 30"),
        ({"schedule": "steps:10,40"}, "has a step after the last of 30 epochs"),
        ({"schedule": "steps:20,10"}, "--optimizer.schedule must be one of constant, steps, cosine, one-cycle"),
        ({"schedule": "linear"}, "--optimizer.schedule must be one of constant, steps, cosine, one-cycle"),
        ({"schedule": "cosine:3"}, "--optimizer.schedule must be one of"),
        ({"nesterov": True}, "goes with --optimizer.name sgd and --optimizer.momentum above 0"),
        ({"clip": 0.0}, "--optimizer.clip must be above 0"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(options, sentence):
    with pytest.raises(ConfigError) as raised:
        make_config("moons", {f"optimizer.{name}": value for name, value in options.items()})
    assert sentence in str(raised.value)


def test_normalisation_layers_may_be_spared_the_weight_decay():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
    options = {"optimizer.weight_decay": 0.1, "optimizer.decay_norms": False}
    config = make_config("moons", options)
    decayed, spared = make_optimizer(config, network).param_groups
    assert [decayed["weight_decay"], spared["weight_decay"]] == [0.1, 0.0]
    assert [tuple(p.shape) for p in spared["params"]] == [(4,)] * 4
    assert len(decayed["params"]) == 4
    (all_of_them,) = make_optimizer(make_config("moons", {"optimizer.weight_decay": 0.1}), network).param_groups
    assert len(all_of_them["params"]) == 8
    assert as_flags({"optimizer.decay_norms": False}) == ["--optimizer.decay-norms", "false"]


def test_another_optimiser_leaves_out_a_recipes_nesterov():
    config = make_config("moons", {"recipe": "journal", "optimizer.name": "adam"})
    assert (config.optimizer.name, config.optimizer.nesterov) == ("adam", False)
    assert make_config("moons", {"recipe": "journal"}).optimizer.nesterov


def test_nesterov_is_torchs():
    options = {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True}
    assert make_optimizer(make_config("moons", options), nn.Linear(2, 2)).param_groups[0]["nesterov"]


def test_a_run_whose_rate_depends_on_its_length_is_not_part_of_a_longer_one(tmp_path):
    file = tmp_path / "sweep.yaml"
    text = "title: t\npreset: moons\noptions: {delta_eps: 0.1, method: ima%s}\nsweep: {eps_max: [0.1, 0.2]}\n"
    for more, runs in (("", 1), (", optimizer.schedule: cosine", 2)):
        file.write_text(text % more)
        assert len(read_sweep(file).runs) == runs

"""Configurations: fingerprints, mistakes, the table of attacks."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from pydantic import Field

from ima_dist.config import schema
from ima_dist.config.attacks import ATTACK_TABLE, ATTACKS, STRICTEST_FIRST, describe_attack, protocol
from ima_dist.config.checked import Checked
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import PRESETS, make_config
from ima_dist.config.values import as_flags, differences, from_dict, nested, option_values, to_dict, with_options


class LaterAttack(schema.AttackConfig):
    restarts: int = Field(1, ge=1, description="an option that came later, in a section that was there")


class LaterSection(Checked):
    weight: float = Field(0.0, ge=0, description="an option in a section that came later")


class LaterConfig(schema.Config):
    later: float = Field(0.0, ge=0, description="an option that came later")
    attack: LaterAttack = LaterAttack()
    latest: LaterSection = LaterSection()


@pytest.mark.parametrize("preset", PRESETS)
def test_an_option_that_comes_later_leaves_fingerprints_as_they_are(preset):
    for options in ({}, {"method": "adv", "seed": 3}, {"attack.steps": 3, "autocast": "float16"}):
        config = make_config(preset, options)
        later = LaterConfig.model_validate(to_dict(config))
        assert later.fingerprint() == config.fingerprint()
        assert differences(later, config) == []
        for name, value in (("later", 0.5), ("attack.restarts", 2), ("latest.weight", 0.1)):
            used = LaterConfig.model_validate(nested(to_dict(config), {name: value}))
            assert used.fingerprint() != config.fingerprint()
            assert differences(used, later) == [name]


def test_every_option_of_the_first_version_is_in_the_fingerprint():
    config = make_config("moons")
    others = {
        "method": "adv", "norm": "l2", "eps_max": 0.2, "delta_eps": 0.02, "beta": 0.4, "margin_update": "online",
        "epochs": 29, "batch_size": 64, "seed": 1, "dtype": "float64", "data.source": "a:b", "data.subset": 50,
        "data.noise": 0.1, "model.factory": "a:b", "model.sync_batch_norm": True, "optimizer.name": "sgd",
        "optimizer.lr": 0.1, "optimizer.weight_decay": 0.1, "optimizer.momentum": 0.1, "optimizer.halve_every": 3,
        "attack.steps": 1, "attack.bisections": 1, "attack.step_scale": 1.0, "attack.boundary_side": "inside",
        "trades.inverse_lambda": 1.0, "preset": "svhn",
    }  # fmt: skip
    sections = {"data", "model", "optimizer", "attack", "trades", "eval"}
    assert set(others) | sections == schema._FIRST
    for name, value in others.items():
        assert with_options(config, {name: value}).fingerprint() != config.fingerprint(), name
    for name, value in (("workers", 3), ("device", "cpu"), ("eval.steps", 3), ("data.dir", "x"), ("eval.noise", [0.1])):
        assert with_options(config, {name: value}).fingerprint() == config.fingerprint(), name


def test_a_configuration_is_a_value():
    config = make_config("cifar10", {"method": "trades"})
    assert from_dict(to_dict(config)) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(from_dict(to_dict(config))) == hash(config)
    assert option_values(config)["attack.steps"] == 10
    assert type(with_options(config, {"beta": 1}).beta) is float
    with pytest.raises(ValueError, match="frozen"):
        config.beta = 0.1  # type: ignore[misc]
    assert as_flags({"eps_max": 0.1, "data.download": True, "workers": None, "eval.noise": [0.0, 0.1]}) == [
        "--eps-max", "0.1", "--data.download", "--eval.noise", "0.0,0.1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"beta": True}, "--beta must be a number, not True."),
        ({"beta": "0.3"}, "--beta must be a number, not '0.3'."),
        ({"beta": 1.5}, "--beta must lie between 0 and 1, not 1.5."),
        ({"beta.x": 1}, "--beta must be a number, not {'x': 1}."),
        ({"epochs": 2.0}, "--epochs must be a whole number, not 2.0."),
        ({"seed": 2**31}, "--seed must lie between 0 and 2147483647, not 2147483648."),
        ({"optimizer.momentum": 1}, "--optimizer.momentum must be at least 0 and below 1, not 1."),
        ({"optimizer.lr": float("nan")}, "--optimizer.lr must be above 0, not nan."),
        ({"eval.noise": 0.3}, "--eval.noise must be a list, not 0.3."),
        ({"eval.noise": [0, "a"]}, "--eval.noise must be a number, not 'a'."),
        ({"eval.noise": []}, "--eval.noise needs at least one level, for example --eval.noise 0,0.1,0.2."),
        ({"data.dir": 3}, "--data.dir must be text, not 3."),
        ({"data.download": 1}, "--data.download must be true or false, not 1."),
        ({"data.subset": "5"}, "--data.subset must be a whole number, not '5'."),
        ({"data": 3}, "The configuration: data must be a mapping of names to values, not 3."),
        ({"data.sbset": 1}, "The configuration has an unknown entry 'data.sbset' (did you mean subset?)."),
        ({"workers": 1.5}, "--workers must be a whole number, or a range such as 1-4, not 1.5."),
        ({"device": "gpu"}, "--device must be one of auto, cpu, cuda, not 'gpu' (did you mean cuda?)."),
        (
            {"method": "x" * 99},
            "--method must be one of ima, ce, adv, rand, trades, mma, ddn, iaat, fat, nfgsm, external, not "
            f"'{'x' * 75} ….",
        ),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_is_accepted(changes: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError) as caught:
        with_options(make_config("moons"), changes)
    assert str(caught.value) == sentence


def test_options_need_no_torch_and_no_ray():
    code = (
        "import sys; from ima_dist.config.presets import make_config; from ima_dist.plans.sweepfile import read_sweep;"
        "from ima_dist.cli.parser import add_options; make_config('moons');"
        "assert not {'torch', 'ray', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ranks_of_attacks_are_an_order():
    assert sorted(attack.rank for attack in ATTACK_TABLE.values()) == list(range(1, len(ATTACKS) + 1))
    assert STRICTEST_FIRST == ("autoattack", "worst", "minimal", "pgd-mma", "pgd100", "spsa", "white-noise")


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_protocol_is_one_sentence_with_its_settings(attack):
    settings = protocol(attack, make_config("mnist"))
    text = describe_attack({"attack": attack, **settings})
    assert text.startswith(f"{attack}: ")
    assert "{" not in text
    assert "unknown" not in text
    assert not text.endswith(".")
    for name, words in (("steps", "100 "), ("spsa_samples", "2018 ")):
        assert (words in text) == (settings.get(name) is not None)


def test_settings_that_an_old_summary_lacks_are_unknown():
    assert "an unknown number of random directions" in describe_attack({"attack": "spsa", "steps": 3})
    assert "length unknown·ε" in describe_attack({"attack": "pgd-mma", "steps": 3, "step_scale": None})


def test_what_worst_does_is_what_its_protocol_says(monkeypatch):
    """Two losses with all steps each, then from each of two starts as many steps shared by three classes."""
    import torch

    from ima_dist.attacks import worst
    from ima_dist.evaluation.attacks import EVALUATION_ATTACKS

    assert tuple(EVALUATION_ATTACKS) == ATTACKS
    spent: Counter[str] = Counter()

    def unbroken(self, runs, balls, sizes, loss="margin"):
        for _, rival in runs:
            spent["losses" if rival is None else "rivals"] += len(sizes)
            if rival is not None:
                assert sizes[0] == 0.5
                assert sizes == sorted(sizes, reverse=True)

    monkeypatch.setattr(sys.modules["ima_dist.attacks.worst"].Search, "_break", unbroken)
    network = torch.nn.Linear(4, 10)
    x = torch.rand(2, 4)
    worst(network, x, network(x).argmax(1), [0.1], norm="linf", steps=30)
    assert spent == {"losses": 2 * 30, "rivals": 2 * 30}
    assert "three nearest wrong classes" in describe_attack({"attack": "worst", "steps": 30, "step_scale": 4.0})

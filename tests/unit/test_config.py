"""Configurations: the table of attacks."""

from __future__ import annotations

import pytest

from ima_dist.config.attacks import ATTACK_TABLE, ATTACKS, STRICTEST_FIRST, describe_attack, protocol
from ima_dist.config.presets import make_config


def test_ranks_of_attacks_are_an_order():
    assert sorted(attack.rank for attack in ATTACK_TABLE.values()) == list(range(1, len(ATTACKS) + 1))
    assert STRICTEST_FIRST == ("autoattack", "worst", "pgd-mma", "pgd100", "spsa", "white-noise")


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
    from collections import Counter

    import torch

    from ima_dist.attacks import worst
    from ima_dist.evaluation.attacks import EVALUATION_ATTACKS

    assert tuple(EVALUATION_ATTACKS) == ATTACKS
    spent = Counter()

    def unbroken(model, y, rival, rows, begin, balls, predicted, sizes, loss):
        spent["losses" if rival is None else "rivals"] += len(sizes)
        if rival is not None:
            assert sizes[0] == 0.5
            assert sizes == sorted(sizes, reverse=True)
        return 0

    import sys

    monkeypatch.setattr(sys.modules["ima_dist.attacks.worst"], "_break", unbroken)
    network = torch.nn.Linear(4, 10)
    x = torch.rand(2, 4)
    worst(network, x, network(x).argmax(1), [0.1], norm="linf", steps=30)
    assert spent == {"losses": 2 * 30, "rivals": 2 * 30}
    assert "three nearest wrong classes" in describe_attack({"attack": "worst", "steps": 30, "step_scale": 4.0})

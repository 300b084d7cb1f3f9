"""The later rules for margins, of the journal article and of AME, against plain statements of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ima_dist.attacks.bpgd_last import bpgd_last, steepness
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config, options_of
from ima_dist.config.values import with_options
from ima_dist.core import norms
from ima_dist.core.noise import Phase
from ima_dist.margins.store import MarginStore
from ima_dist.margins.update import ame_margins, journal_margins
from ima_dist.methods import Batch, make_method
from ima_dist.training.early_stop import Stopped, ended
from tests.support import reference, workers

NORMS = ("linf", "l2")
SIDES = ("midpoint", "inside", "outside")


def problem(seed=0, samples=40):
    """(network, x, y): three classes in ten dimensions, most samples right, float64."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        network[0].weight *= 3
        network[0].bias -= network[0].weight.sum(1) / 2  # the middle of the box is where it bends
    x = torch.rand(samples, 10, dtype=torch.float64)
    y = network(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    return network, x, y


def by_hand(rule, before, distance, correct, crossed, *, step, largest, gradient):
    """One sample, in plain numbers."""
    if rule == "journal":
        after = before if not correct else (before + distance) / 2 if crossed else before + step
        return min(max(after, 0.0), largest)
    if not correct:
        return before
    return distance if crossed else before + step / (1 + gradient) * 0.9 ** math.floor(before / step)


@pytest.mark.parametrize("rule", ["journal", "ame"])
def test_rules_by_hand(rule):
    # Rows: wrong; crossed; crossed at the sample itself; not crossed, at two margins; near the largest margin.
    before = torch.tensor([0.30, 0.30, 0.10, 0.10, 0.25, 0.45], dtype=torch.float64)
    distance = torch.tensor([0.00, 0.12, 0.00, 0.00, 0.00, 0.00], dtype=torch.float64)
    correct = torch.tensor([False, True, True, True, True, True])
    crossed = torch.tensor([False, True, True, False, False, False])
    gradient = torch.tensor([9.0, 9.0, 9.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    seen = {"correct": correct, "crossed": crossed, "expansion": 0.1}
    if rule == "journal":
        new = journal_margins(before, distance, **seen, eps_max=0.5)
        assert new.tolist() == pytest.approx([0.3, 0.21, 0.05, 0.2, 0.35, 0.5])
    else:
        new = ame_margins(before, distance, gradient, **seen)
        assert new.tolist() == pytest.approx([0.3, 0.12, 0, 0.1 + 0.09, 0.25 + 0.081 / 1.5, 0.45 + 0.1 * 0.9**4 / 3])
    rows = zip(before.tolist(), distance.tolist(), correct.tolist(), crossed.tolist(), gradient.tolist(), strict=True)
    for row, found in zip(rows, new.tolist(), strict=True):
        assert found == pytest.approx(by_hand(rule, *row[:4], step=0.1, largest=0.5, gradient=row[4]))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_attack_equals_the_plain_algorithm(norm, side):
    network, x, y = problem()
    torch.manual_seed(1)
    eps = torch.rand(len(x), dtype=torch.float64) * {"linf": 0.3, "l2": 0.9}[norm]
    eps[3] = 0.0
    start = norms.random_start(x, (eps - 0.1).clamp_min(1e-3), norm)
    point, crossed, last = reference.bpgd_last(
        network, x, y, eps, norm=norm, start=start, box=(0.0, 1.0), steps=7, boundary_side=side
    )
    found = bpgd_last(network, x, y, eps, norm=norm, steps=7, start=start, box=(0.0, 1.0), boundary_side=side)
    assert torch.equal(found.crossed, crossed)
    assert torch.equal(found.correct, network(x).argmax(1) == y)
    assert 3 < int(crossed.sum()) < int(found.correct.sum()) - 3, "the radius makes this test say little"
    torch.testing.assert_close(found.x, point, rtol=0, atol=1e-9)
    right = int(found.correct.sum())
    assert found.evaluations == len(x) + 8 * right + 10 * int(crossed.sum())
    still = ~found.correct
    assert torch.equal(found.noisy[still], x[still])
    assert torch.equal(found.noisy[crossed], found.x[crossed])
    short = {"inside": 2**-10, "midpoint": 2**-11, "outside": 0}[side]
    uncrossed = found.correct & ~crossed
    torch.testing.assert_close(found.noisy[uncrossed], (x + (1 - short) * (last - x))[uncrossed], rtol=0, atol=1e-9)


def test_a_crossing_on_the_way_counts_though_the_last_iterate_is_right():
    """A strip of the other class from 0.12 to 0.18: the start lies in it, and the only step jumps over its far side."""

    def strip(x):
        lead = (x[:, 0] - 0.12) * (x[:, 0] - 0.18)
        return torch.stack([lead, torch.zeros_like(lead)], 1)

    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    start = torch.full_like(x, 0.14)
    assert strip(x + start)[0, 0] < 0 < strip(x)[0, 0]
    assert strip(x + 0.4)[0, 0] > 0
    found = bpgd_last(strip, x, y, 0.4, norm="linf", steps=1, start=start, boundary_side="inside")
    assert bool(found.crossed)
    assert float(found.x) == pytest.approx(0.4 * (1 - 2**-10))  # no midpoint is misclassified


@pytest.mark.parametrize("norm", NORMS)
def test_nobody_crosses_and_empty_batches(norm):
    network, x, y = problem()
    found = bpgd_last(network, x, y, 1e-9, norm=norm)
    assert not found.crossed.any()
    assert torch.equal(found.x, x)
    none = bpgd_last(network, x[:0], y[:0], 0.1, norm=norm)
    assert (len(none.x), none.evaluations) == (0, 0)
    assert len(steepness(network, x[:0], y[:0])) == 0
    with pytest.raises(ValueError, match="boundary_side must be"):
        bpgd_last(network, x, y, 0.1, norm=norm, boundary_side="middle")


def test_steepness_is_the_largest_entry_of_the_gradient_of_cross_entropy():
    network, x, y = problem()
    inputs = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(inputs), y, reduction="sum"), inputs)
    torch.testing.assert_close(steepness(network, x, y), gradient.abs().amax(1), rtol=0, atol=1e-12)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


# ---- as a method ---------------------------------------------------------------------------------------


def batch(x, y, margins):
    return Batch(x, y, torch.arange(len(x)) * 3, margins, seed=3, epoch=2, phase=Phase.TRAIN)


@pytest.mark.parametrize("rule", ["journal", "ame"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_proposes_what_the_rule_says(rule, norm):
    network, x, y = problem()
    torch.manual_seed(2)
    step, largest = 0.05, 0.3
    margins = torch.rand(len(x), dtype=torch.float64) * largest
    options = {"norm": norm, "eps_max": largest, "delta_eps": step, "dtype": "float64", "attack.steps": 5}
    config = make_config("moons", {**options, "margin_rule": rule, "beta": 0.4, "batch_size": 8})
    method = make_method(config, (0.0, 1.0))
    assert (config.margin_update, method.margin_pass) == ("online", False)
    assert method.largest_margin == (largest if rule == "journal" else None)
    given = batch(x, y, margins)
    attacked = method.attack(network, given)

    radius = torch.tensor([max(m - step, 1e-3) for m in margins.tolist()], dtype=torch.float64)
    start = given.start(radius, norm)
    point, crossed, last = reference.bpgd_last(network, x, y, margins, norm=norm, start=start, box=(0.0, 1.0), steps=5)
    assert crossed.any()
    assert torch.equal(attacked.proposals.crossed, crossed)
    torch.testing.assert_close(attacked.noisy, point[crossed], rtol=0, atol=1e-9)
    correct = network(x).argmax(1) == y
    growing = [i for i in range(len(x)) if correct[i] and not crossed[i]]
    assert len(growing) > 3
    for i, new in enumerate(attacked.proposals.values.tolist()):
        g = 0.0
        if i in growing:
            end = (x[i] + (1 - 2**-11) * (last[i] - x[i])).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(network(end[None]), y[i : i + 1]), end)
            g = 0.4 / 8 * float(gradient.abs().max())
        distance = float(norms.length(point[i : i + 1] - x[i : i + 1], norm))
        wanted = by_hand(
            rule,
            float(margins[i]),
            distance,
            bool(correct[i]),
            bool(crossed[i]),
            step=step,
            largest=largest,
            gradient=g,
        )
        assert new == pytest.approx(wanted, abs=1e-9), i
    more = len(growing) if rule == "ame" else 0
    assert attacked.evaluations == len(x) + 6 * int(correct.sum()) + 10 * int(crossed.sum()) + more


def test_ame_ends_when_no_margin_has_grown_for_five_epochs(tmp_path, monkeypatch):
    config = make_config("moons", {"margin_rule": "ame", "epochs": 9})
    rows = [{"epoch": epoch, "margins_grown": grown} for epoch, grown in enumerate([7, 0, 0, 0, 0, 0, 0, 0, 0], 1)]
    assert [ended(rows[:n], config) for n in range(6)] == [None] * 6
    assert ended(rows[:6], config) == Stopped(after=6, best=6)
    assert ended(rows, config) is None  # it has gone through all epochs
    assert ended(rows[:6], make_config("moons", {"margin_rule": "journal", "epochs": 9})) is None

    monkeypatch.setattr(MarginStore, "uncrossed", lambda store: 0)
    small = {"data__subset": 60, "epochs": 7, "attack__steps": 2, "margin_rule": "ame", "dtype": "float64"}
    config, run = workers.start_run(tmp_path / "run", "moons", **small)
    workers.train(config, run.path, 9)  # interrupted, and continued
    workers.train(config, run.path)
    history = run.read_history()
    assert [row["margins_grown"] for row in history] == [0] * 5
    before, after = (workers.final_state(with_options(config, {"epochs": n}), run.path) for n in (5, 7))
    assert workers.largest_difference(before[0], after[0]) == 0
    assert torch.equal(before[1], after[1])


# ---- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["journal", "ame"])
def test_a_separate_pass_for_margins_is_refused_with_the_later_rules(rule):
    with pytest.raises(ConfigError, match=rf"^--margin-rule {rule} takes margins from the training step: .*online\.$"):
        make_config("moons", {"margin_rule": rule, "margin_update": "epoch"})
    config = make_config("moons", {"margin_rule": rule})
    assert config.margin_update == "online"
    assert make_config("moons", options_of(config)) == config
    assert config.fingerprint() != make_config("moons", {"margin_update": "online"}).fingerprint()


def test_the_journals_recipe():
    config = make_config("cifar10", {"recipe": "journal"})
    assert (config.margin_rule, config.margin_update, config.optimizer.halve_every) == ("journal", "online", None)
    assert make_config("cifar10", options_of(config)) == config
    with pytest.raises(ConfigError, match="leave --margin-update out"):
        make_config("cifar10", {"recipe": "journal", "margin_update": "epoch"})


def test_the_papers_rule_is_the_default_and_leaves_fingerprints():
    config = make_config("moons", {"margin_rule": "paper"})
    assert config == make_config("moons")
    assert config.fingerprint() == make_config("moons").fingerprint()
    assert config.margin_update == "epoch"

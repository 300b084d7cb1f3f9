"""Attacks as CUDA graphs, on the pretend card: the results and counts of the attacks themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from ima_dist.attacks import bpgd, ddn, fixed, pgd
from ima_dist.attacks.common import attack_mode, margin_loss
from ima_dist.attacks.counting import Counted, Tally
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.core import norms
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.training.graphs import _MOST, Captured, Graphs
from ima_dist.training.loop import Training
from tests.support.fakecard import CUDA0, fake_card

SMALL = {
    "data.subset": 84,
    "batch_size": 32,
    "epochs": 3,
    "eps_max": 0.3,
    "dtype": "float64",
    "attack.steps": 3,
    "attack.bisections": 3,
}
METHODS = [
    {"method": "ima", "delta_eps": 0.1},
    {"method": "ima", "delta_eps": 0.1, "norm": "l2", "margin_update": "online"},
    {"method": "ima", "delta_eps": 0.1, "margin_rule": "journal", "margin_update": "online"},
    {"method": "ima", "delta_eps": 0.1, "margin_rule": "ame", "margin_update": "online"},
    {"method": "adv"},
    {"method": "trades"},
    {"method": "mma", "delta_eps": 0.1},
    {"method": "ddn", "norm": "l2"},
    {"method": "fat", "fat.tau": 1},
    {"method": "iaat"},
]


def trained(options, folder, graphs):
    """Weights and history of a training on the card, and its card."""
    config = make_config("moons", {**SMALL, **options, "cuda_graphs": graphs})
    with fake_card() as card:
        training = Training(config, RunDir.create(config, folder), load(config.data, config.seed), CUDA0)
        weights = {name: value.cpu() for name, value in training.fit().state_dict().items()}
        met = training.state.counters.met.totals().tolist()
    seconds = ("seconds", "per_second")
    history = [{k: v for k, v in row.items() if not k.endswith(seconds)} for row in training.history]
    return weights, history, met, card, training.reporter.notes


@pytest.mark.parametrize("options", METHODS, ids=lambda o: "-".join(map(str, o.values())))
def test_a_training_with_graphs_is_bit_for_bit_the_one_without(options, tmp_path):
    expected, history, met, plain, _ = trained(options, tmp_path / "plain", graphs=False)
    found, its_history, its_met, card, notes = trained(options, tmp_path / "graphs", graphs=True)
    assert not plain.graphs
    assert not notes
    assert card.graphs
    assert sum(graph.replays for graph in card.graphs) >= 4
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (its_history, its_met) == (history, met)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)).double()


def batch(seed, model, size=16):
    torch.manual_seed(seed)
    x = torch.rand(size, 3, dtype=torch.float64)
    return x.to(CUDA0), model(x.to(CUDA0)).argmax(1).detach(), (0.5 * torch.rand(size, dtype=torch.float64)).to(CUDA0)


ATTACKS = {
    "bpgd": lambda m, x, y, eps: bpgd(m, x, y, eps, norm="linf", steps=4, start=eps[:, None] * x),
    "pgd": lambda m, x, y, eps: pgd(m, x, y, eps, norm="l2", steps=4, start=eps[:, None] * x),
    "ddn": lambda m, x, y, eps: ddn(m, x, y, steps=4),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_replay_has_the_results_and_counts_of_the_attack_itself(attack):
    with fake_card() as card:
        model, call = network().to(CUDA0), Graphs()
        counted, itself = Counted(model, Tally(CUDA0)), Counted(model, Tally(CUDA0))
        results, expected = [], []
        for seed in range(4):
            given = batch(seed, model)
            results.append(call(attack, counted, *given))
            expected.append(attack(itself, *given))
            with torch.no_grad():  # as an optimiser does
                for p in model.parameters():
                    p.add_(0.1 * p)
        assert [graph.replays for graph in card.graphs] == [3]
        assert counted.tally.totals().tolist() == itself.tally.totals().tolist()
        # Compared at the end: no replay has altered what an earlier one returned.
        for ours, theirs in zip(results, expected, strict=True):
            for a, b in zip(parts(ours), parts(theirs), strict=True):
                assert torch.equal(torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu())


def parts(result):
    """The fields of an attack's result, or the tensor alone."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [getattr(result, field.name) for field in dataclasses.fields(result)]


def test_weights_that_have_moved_are_captured_anew():
    with fake_card() as card:
        model, call = network().to(CUDA0), Graphs()
        given = batch(0, model)
        for _ in range(2):
            call(ATTACKS["pgd"], model, *given)
        model[0].weight.data = 2 * model[0].weight.data
        found = [call(ATTACKS["pgd"], model, *given) for _ in range(2)]
        assert len(card.graphs) == 2
        assert all(torch.equal(x.cpu(), ATTACKS["pgd"](model, *given).cpu()) for x in found)


def test_more_shapes_than_are_captured_run_as_ever():
    with fake_card() as card:
        model, call = network().to(CUDA0), Graphs()
        for size in range(1, _MOST + 4):
            given = batch(0, model, size)
            found = [call(ATTACKS["bpgd"], model, *given) for _ in range(2)]
            assert all(torch.equal(f.x.cpu(), ATTACKS["bpgd"](model, *given).x.cpu()) for f in found)
        assert len(card.graphs) == _MOST


def test_tensors_that_are_plain_attributes_are_looked_after():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = network(), torch.full((), 2.0, dtype=torch.float64)

        def forward(self, x):
            return self.inner(x) * self.scale + x[:, :1]

    with fake_card() as card:
        model, call = Scaled().to(CUDA0), Graphs()
        model.scale = model.scale.to(CUDA0)
        given = batch(0, model)
        for _ in range(2):
            call(ATTACKS["pgd"], model, *given)
        model.scale = -model.scale
        found = [call(ATTACKS["pgd"], model, *given) for _ in range(2)]
        assert len(card.graphs) == 2
        assert all(torch.equal(x.cpu(), ATTACKS["pgd"](model, *given).cpu()) for x in found)


def test_a_network_that_looks_at_values_is_refused_in_a_sentence():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x) * (2.0 if x.sum().item() > 0 else 1.0)

    with fake_card():
        model, call = Looks().to(CUDA0), Graphs()
        given = batch(0, model)
        call(ATTACKS["pgd"], model, *given)
        with pytest.raises(ConfigError, match="--cuda-graphs: this network cannot be captured"):
            call(ATTACKS["pgd"], model, *given)


def test_ten_passes_of_worst_can_be_captured():
    """Between two looks at which samples are broken, nothing waits."""

    def passes(x, y, eps):
        balls = norms.Balls(x, eps, "linf", None)
        _, found, _ = fixed.passes(model, x, y, balls, [0.1] * 9 + [None], margin_loss)
        return found

    with fake_card():
        model = network().to(CUDA0)
        first, second = batch(0, model), batch(1, model)
        with torch.no_grad(), attack_mode(model):
            passes(*first)
            captured = Captured(passes, first)
            assert torch.equal(captured(second).cpu(), passes(*second).cpu())


def test_a_cpu_has_nothing_to_capture(tmp_path):
    with pytest.raises(ConfigError, match="--cuda-graphs needs a card"):
        make_config("moons", {"cuda_graphs": True, "device": "cpu"})
    model = network()
    x, y, eps = torch.rand(4, 3).double(), torch.zeros(4, dtype=torch.int64), torch.full((4,), 0.1)
    call = Graphs()
    assert all(torch.equal(call(ATTACKS["ddn"], model, x, y, eps).x, ddn(model, x, y, steps=4).x) for _ in range(3))
    asked, plain = make_config("moons", {"cuda_graphs": True}), make_config("moons", {})
    assert asked.fingerprint() == plain.fingerprint()


def test_options_without_an_effect_say_so(tmp_path):
    options = {**SMALL, "epochs": 1, "method": "ce", "compile": True, "cuda_graphs": True}
    config = make_config("moons", options)
    training = Training(config, RunDir.create(config, tmp_path), load(config.data, config.seed), torch.device("cpu"))
    training.fit()
    assert [note.split(":")[0] for note in training.reporter.notes] == [
        "--compile has had no effect",
        "--cuda-graphs has had no effect",
    ]

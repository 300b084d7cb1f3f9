"""Options that recipes are made of: equal on any number of workers and after an interruption, and what they do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ima_dist
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import METHODS
from ima_dist.data.load import load
from ima_dist.results.card import make_card
from ima_dist.results.tradeoff import done_epochs
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.inputs import read_inputs
from ima_dist.training import checkpoint, validation
from ima_dist.training.average import averaged
from ima_dist.training.early_stop import Stopped, stopped
from ima_dist.training.loop import Training
from ima_dist.training.network import make_network
from ima_dist.training.weight_perturbation import Perturbation
from tests.support import workers
from tests.support.datafiles import write_idx

SMALL = {"data__subset": 130, "epochs": 2, "batch_size": 32, "dtype": "float64", "attack__steps": 3, "norm": "l2"}
SGD = {"optimizer__name": "sgd", "optimizer__lr": 0.05, "optimizer__momentum": 0.9, "optimizer__nesterov": True}
MANY = {
    **SGD,
    "optimizer__schedule": "cosine",
    "optimizer__warmup": 0.5,
    "optimizer__weight_decay": 0.01,
    "optimizer__decay_norms": False,
    "optimizer__clip": 0.5,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "awp": 0.02,
}
# Each of them alone, on top of a plain SGD.
EACH = [(name, value) for name, value in MANY.items() if name not in SGD] + [
    ("optimizer__schedule", "one-cycle"),
    ("optimizer__schedule", "steps:50%"),
    ("optimizer__nesterov", True),
]


FASHION = {**MANY, "data__subset": 24, "batch_size": 8, "attack__steps": 2, "attack__bisections": 2}
RUNS = [("moons", method) for method in METHODS] + [("fashion_mnist", method) for method in ("adv", "ima")]


def _start(place: Path, data: Path) -> list[tuple]:
    made = []
    for preset, method in RUNS:
        own = {**FASHION, "data__dir": str(data)} if preset == "fashion_mnist" else MANY
        options = {**SMALL, **own, "method": method, "norm": "linf" if method == "nfgsm" else "l2"}
        path = place / f"{preset}-{method}"
        made.append((workers.start_run(path, preset, **options)[0], path))
    return made


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(name of the form, preset, method) -> weights and margins."""
    found = {}
    data = write_idx(tmp_path_factory.mktemp("data"))
    for name, parts in {"1": [(1, None)], "2": [(2, None)], "1→2": [(1, 3), (2, None)]}.items():
        made = _start(tmp_path_factory.mktemp("runs"), data)
        for count, stop_after in parts:
            workers.run_on(count, workers.train_all, made, stop_after)
        for config, path in made:
            found[name, config.preset, config.method] = workers.final_state(config, path)
    return found


@pytest.mark.parametrize(("preset", "method"), RUNS)
def test_many_options_at_once_are_exact(results, preset, method):
    """In float64, with weights moved by far more: on two workers, and interrupted."""
    weights, margins = results["1", preset, method]
    for form in ("2", "1→2"):
        others, their_margins = results[form, preset, method]
        assert workers.largest_difference(weights, others) < 1e-9, form
        if margins is not None:
            assert float((margins - their_margins).abs().max()) < 1e-9, form


def test_every_option_does_something(tmp_path):
    def trained(name: str, **options) -> dict[str, torch.Tensor]:
        config, _ = workers.start_run(tmp_path / name, "moons", **SMALL, method="adv", **options)
        workers.train(config, tmp_path / name)
        return workers.final_state(config, tmp_path / name)[0]

    plain = {**SGD, "optimizer__nesterov": False}
    usual, decayed = trained("usual", **plain), trained("decayed", **plain, optimizer__weight_decay=0.01)
    for number, (option, value) in enumerate(EACH):
        before = decayed if option == "optimizer__decay_norms" else usual
        decay = {"optimizer__weight_decay": 0.01} if before is decayed else {}
        found = trained(str(number), **{**plain, **decay, option: value})
        assert workers.largest_difference(before, found) > 1e-6, option


def test_label_smoothing_is_in_the_loss_and_not_in_the_attack():
    x, y = torch.rand(6, 2, dtype=torch.float64), torch.tensor([0, 1] * 3)
    torch.manual_seed(0)
    network, indices = torch.nn.Linear(2, 2, dtype=torch.float64), torch.arange(6)
    plain, smooth = (
        ima_dist.IncreasingMargin(6, 0.3, epochs=1, label_smoothing=s, dtype=torch.float64) for s in (0, 0.2)
    )
    noisy, same = (im.attack(network, x, y, indices) for im in (plain, smooth))
    assert torch.equal(noisy.inputs, same.inputs)
    logits = network(noisy.inputs)
    rows = F.cross_entropy(logits, torch.cat([y, y[noisy.noisy_of]]), reduction="sum", label_smoothing=0.2)
    assert smooth.loss(logits, y, same).item() == pytest.approx(rows.item() / 2 / 6)
    assert plain.loss(logits, y, noisy).item() != pytest.approx(rows.item() / 2 / 6)


def test_the_average_is_what_a_run_results_in(tmp_path, monkeypatch):
    """By hand from the weights after each step; weights and margins are those of a run without."""
    options = {**SMALL, "method": "ima", "model__factory": "tests.support.user_code:with_batch_norm"}
    config, _ = workers.start_run(tmp_path / "plain", "moons", **options)
    workers.train(config, tmp_path / "plain")
    raw, margins = workers.final_state(config, tmp_path / "plain")
    config, run = workers.start_run(tmp_path / "averaged", "moons", **options, ema=0.6)
    steps: list[dict[str, torch.Tensor]] = []
    genuine = Training._step

    def step(self, *given) -> None:
        genuine(self, *given)
        steps.append({name: t.clone() for name, t in self.network.state_dict().items()})

    monkeypatch.setattr(Training, "_step", step)
    workers.train(config, tmp_path / "averaged")
    result, same_margins = workers.final_state(config, tmp_path / "averaged")
    assert torch.equal(margins, same_margins)
    assert workers.largest_difference(raw, steps[-1]) == 0
    for name, expected in steps[0].items():
        for update, now in enumerate(steps[1:], start=1):
            decay = min(0.6, (1 + update) / (10 + update))
            expected = decay * expected + (1 - decay) * now[name] if now[name].is_floating_point() else now[name]
        torch.testing.assert_close(result[name], expected, rtol=1e-12, atol=1e-12)
    assert any("running_var" in name and not torch.equal(result[name], raw[name]) for name in result)

    data, epoch = load(config.data, config.seed), config.epochs
    network = make_network(config, data)
    checkpoint.load_weights(run, epoch, data.digest(), network)
    training = Training(config, run, data, torch.device("cpu"))
    assert run.read_history()[-1]["val_accuracy"] == validation.accuracy(network, training.val, config)
    checkpoint.load_weights(run, epoch, data.digest(), network, raw=True)
    assert workers.largest_difference(raw, network.state_dict()) == 0


def test_a_step_with_perturbed_weights(tmp_path):
    """Without momentum w' = w - lr · gradient at w + v; v has a twentieth of w's length, along the gradient at w."""
    options = {**SMALL, "method": "ce", "optimizer__name": "sgd", "optimizer__lr": 0.1, "batch_size": 130}
    config, _ = workers.start_run(tmp_path / "run", "moons", **options, awp=0.05)
    data = load(config.data, config.seed)
    training = Training(config, RunDir(tmp_path / "run"), data, torch.device("cpu"))
    twin = make_network(config, data)
    training._step(torch.arange(130))

    x, y = training.train.batch(torch.arange(130))

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters())))

    weights = [p.detach().clone() for p in twin.parameters()]
    ascent = gradients()
    with torch.no_grad():
        for p, g in zip(twin.parameters(), ascent, strict=True):
            if p.ndim > 1:
                p.add_(0.05 * p.norm() / g.norm() * g)
    for p, w, g in zip(training.network.parameters(), weights, gradients(), strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * g, rtol=1e-10, atol=1e-12)
    assert int(training.state.counters.totals()["correct"]) == int((make_network(config, data)(x).argmax(1) == y).sum())


def test_layers_without_a_usable_gradient_stay_and_all_come_back():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    before = [p.detach().clone() for p in network.parameters()]
    for layer, value in zip(network, (1.0, 0.0, float("nan")), strict=True):
        layer.weight.grad = torch.full_like(layer.weight, value)
        layer.bias.grad = torch.ones_like(layer.bias)
    perturbation = Perturbation(network, 0.1)
    perturbation.move()
    moved = [not torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True)]
    assert moved == [True, False, False, False, False, False]
    change = network[0].weight - before[0]
    assert float(change.detach().norm() / before[0].norm()) == pytest.approx(0.1)
    perturbation.undo()
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


def test_patience_counts_epochs_since_the_first_best():
    rows = [{"epoch": n, "val_robust_accuracy": a} for n, a in enumerate((0.5, 0.7, 0.6, 0.7, 0.65), start=1)]
    assert [stopped(rows[:n], 2, 9) for n in range(6)] == [None, None, None, None, Stopped(4, 2), Stopped(5, 2)]
    assert stopped(rows, 4, 9) is None
    assert stopped(rows, None, 9) is None
    assert stopped(rows, 2, 5) is None  # it has gone through all epochs


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_ends_with_its_best_epoch(tmp_path, monkeypatch, ema):
    """Also after interruptions."""
    monkeypatch.setattr(validation, "robust_accuracy", lambda *_: next(answers))
    options = {**SMALL, "epochs": 9, "method": "ima", "ema": ema, "eval__val_noise": 0.1}
    answers = iter([0.5, 0.7, 0.6, 0.7])
    config, run = workers.start_run(tmp_path / "run", "moons", **options, patience=2)
    workers.train(config, run.path)
    assert [row["epoch"] for row in run.read_history()] == [1, 2, 3, 4]
    assert sorted(p.name for p in run.checkpoints_dir.iterdir()) == [f"epoch={n:04d}" for n in (1, 2, 3, 4, 9)]
    weights, margins = workers.final_state(config, run.path)
    best_weights, best_margins = workers.final_state(config.model_copy(update={"epochs": 2}), run.path)
    assert workers.largest_difference(weights, best_weights) == 0
    assert torch.equal(margins, best_margins)
    workers.train(config, run.path)  # nothing is left to do
    assert len(run.read_history()) == 4

    answers = iter([0.5, 0.7, 0.6, 0.7])
    config, other = workers.start_run(tmp_path / "other", "moons", **options, patience=2)
    for stop_after in (3, 8, None):
        workers.train(config, other.path, stop_after)
    again, their_margins = workers.final_state(config, other.path)
    assert workers.largest_difference(weights, again) == 0
    assert torch.equal(margins, their_margins)


def test_a_run_that_ended_early_is_used_as_any_other(tmp_path, monkeypatch, capsys):
    answers = iter([0.7, 0.6])
    monkeypatch.setattr(validation, "robust_accuracy", lambda *_: next(answers))
    options = {name.replace("__", "."): value for name, value in SMALL.items()} | {"epochs": 9, "method": "ima"}
    more = {
        "eval.val_noise": 0.1,
        "eval.samples": 8,
        "eval.steps": 2,
        "model.factory": "tests.support.user_code:three_way",
    }
    run = ima_dist.fit("moons", out=tmp_path / "run", patience=1, **options, **more)
    assert run.summary["early_stop"] == {"after": 2, "best": 1}
    assert "Stopped after epoch 2 of 9 by --patience: the result is the network of epoch 1." in capsys.readouterr().out
    last, best = ima_dist.load(run.dir.path), ima_dist.load(run.dir.path, epoch=1)
    assert workers.largest_difference(last.state_dict(), best.state_dict()) == 0
    card = make_card(run, 9, read_inputs(run.dir.data_path))
    assert card["validation_robust_accuracy"] == 0.7
    assert done_epochs(run.dir, run.history, run.summary, run.config) == [1, 2, 9]


def test_a_network_that_cannot_be_copied_has_no_average():
    network = torch.nn.Linear(2, 2)
    network.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"--ema needs a copy of the network, which fails: .*lock"):
        averaged(network, 0.9)


def test_the_end_belongs_to_the_fingerprint():
    usual = make_config("moons", {"eval.val_noise": 0.1})
    assert usual.fingerprint() == make_config("moons").fingerprint()
    patient = [make_config("moons", {"patience": 3, "eval.val_noise": noise}).fingerprint() for noise in (0.1, 0.2)]
    assert len({usual.fingerprint(), *patient}) == 3
    with pytest.raises(ConfigError, match=r"--patience needs --eval\.val-noise"):
        make_config("moons", {"patience": 3})

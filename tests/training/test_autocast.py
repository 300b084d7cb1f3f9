"""Half precision in training: attacks keep their direction, runs resume exactly, overflow is told from failure."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from ima_dist.attacks import bpgd, ddn, pgd
from ima_dist.attacks.common import attack_mode, cross_entropy, logits_and_gradient
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.references import resolve_reference
from ima_dist.config.schema import result_fields
from ima_dist.config.values import differences, from_dict, to_dict, with_options
from ima_dist.core import distributed
from ima_dist.core.noise import Phase
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.training import checkpoint, validation
from ima_dist.training.loop import Training
from ima_dist.training.network import HALF, Autocast, autocast
from ima_dist.training.numerics import NumericalError
from tests.support import workers

SMALL = {"data__subset": 300, "epochs": 3, "batch_size": 64, "attack__steps": 5, "attack__bisections": 5}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5)).eval()


@pytest.fixture
def batch(network) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples whose gradients are of very different sizes: the label is what the network says, ever more surely."""
    x = torch.rand(40, 1, 8, 8)
    return x, network(x).argmax(1)


def confident(network: nn.Module, factor: float) -> nn.Module:
    """The network with ``factor`` times its logits."""
    sure = copy.deepcopy(network)
    with torch.no_grad():
        sure[3].weight *= factor
        sure[3].bias *= factor
    return sure


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of each sample, in float64: squares of such numbers are below what float32 holds."""
    return torch.cosine_similarity(a.double().flatten(1), b.double().flatten(1), eps=1e-300)


@pytest.mark.parametrize("kind", HALF)
def test_a_confident_networks_gradient_keeps_its_direction(network, batch, kind):
    """Where the gradient of cross-entropy, as it stands, is less than float16 holds."""
    x, y = batch
    sure = confident(network, 400)
    loss = nn.functional.cross_entropy(sure(x).double(), y, reduction="none")
    told = loss < 1e-8
    assert told.sum() > 10
    _, single = logits_and_gradient(sure, x, y, cross_entropy)
    _, ours = logits_and_gradient(Autocast(sure, kind), x, y, cross_entropy)
    assert float(cosine(ours, single)[told].min()) > 0.95


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        ("moons", (2,)), ("fashion_mnist", (1, 28, 28)), ("mnist", (1, 28, 28)), ("svhn", (3, 32, 32)),
        ("covid_ct", (1, 64, 64)), ("cifar10", (3, 32, 32)),
    ],
)  # fmt: skip
def test_gradients_of_the_papers_networks(preset, shape):
    torch.manual_seed(0)
    network = resolve_reference(make_config(preset, {}).model.factory, "factory")(2, shape).eval()
    x, y = torch.rand(2, *shape), torch.tensor([0, 1])
    with attack_mode(network):
        logits, gradient = logits_and_gradient(network, x, y, cross_entropy)
        halved, ours = logits_and_gradient(Autocast(network, "float16"), x, y, cross_entropy)
    assert halved.dtype == ours.dtype == torch.float32
    torch.testing.assert_close(halved, logits, rtol=0.02, atol=0.05)
    assert float(cosine(ours, gradient).min()) > 0.9


def test_without_autocast_nothing_is_between(network):
    assert autocast(network, "none") is network


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_through_half_precision_reach_as_far(network, batch, norm):
    """Boundary points lie where those of the float32 network lie; PGD breaks what it breaks there."""
    x, y = batch
    eps, halved = 0.1 if norm == "linf" else 0.8, Autocast(network, "float16")
    start = torch.zeros_like(x)
    found = [bpgd(m, x, y, eps, norm=norm, start=start, box=(0, 1)) for m in (network, halved)]
    assert found[0].crossed.float().mean() > 0.5
    assert (found[0].crossed == found[1].crossed).float().mean() > 0.9
    both = found[0].crossed & found[1].crossed
    distance = [(f.x - x).flatten(1).norm(dim=1)[both] for f in found]
    torch.testing.assert_close(*distance, rtol=0.02, atol=2e-3)
    broken = [(network(pgd(m, x, y, eps, norm=norm, start=start)).argmax(1) != y) for m in (network, halved)]
    assert abs(int(broken[0].sum()) - int(broken[1].sum())) <= 1
    if norm == "l2":
        lengths = [(ddn(m, x, y, steps=40).x - x).flatten(1).norm(dim=1) for m in (network, halved)]
        torch.testing.assert_close(*lengths, rtol=0.1, atol=1e-2)


def test_the_network_is_left_as_found(network):
    model = Autocast(network.train(), "float16")
    with attack_mode(model):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(("kind", "method"), [("float16", "ima"), ("bfloat16", "ima"), ("float16", "mma")])
def test_interrupted_and_resumed_equals_undisturbed(tmp_path, kind, method):
    """In mid-epoch."""
    options = {**SMALL, "autocast": kind, "method": method}
    whole, path = tmp_path / "whole", tmp_path / "broken"
    config, _ = workers.start_run(whole, "moons", **options)
    workers.run_on(1, workers.train, config, whole)
    workers.start_run(path, "moons", **options)
    workers.train(config, path, stop_after=8)  # epochs have 5 steps
    assert any("-step=" in p.name for p in (path / "checkpoints").iterdir())
    workers.train(config, path)
    (weights, margins), (weights_2, margins_2) = (workers.final_state(config, p) for p in (whole, path))
    assert workers.largest_difference(weights, weights_2) == 0
    assert torch.equal(margins, margins_2)


@pytest.mark.parametrize(
    ("method", "close"),
    [("adv", 0.02), ("trades", 0.02), ("ima", 0.3)],  # whether a margin is crossed decides on the next one
)
def test_close_to_float32_on_one_and_two_workers(tmp_path, method, close):
    losses = {}
    for name, count, kind in (("none", 1, "none"), ("one", 1, "float16"), ("two", 2, "float16")):
        options = {**SMALL, "method": method, "epochs": 6, "autocast": kind}
        config, run = workers.start_run(tmp_path / name, "moons", **options)
        workers.run_on(count, workers.train, config, tmp_path / name)
        losses[name] = run.read_history()[-1]["train_loss"]
    assert losses["one"] == pytest.approx(losses["none"], rel=close)
    assert losses["two"] == pytest.approx(losses["one"], rel=close)


def _overflow_and_failure(path):
    training = Training(*_parts(path), torch.device("cpu"))
    training.begin()
    training.state.scaler.load_state_dict({**training.state.scaler.state_dict(), "scale": 2.0**40})
    before = [p.clone() for p in training.network.parameters()]
    training._step(torch.arange(1))  # one worker has nothing to do
    training._step(torch.arange(64))
    assert training.state.scaler.get_scale() == 2.0**38
    assert all(torch.equal(a, b) for a, b in zip(before, training.network.parameters(), strict=True))
    if distributed.rank() == 1:
        training.train.x[40:] = float("nan")
    with pytest.raises(NumericalError, match="worker 1: samples 4"):
        training._step(torch.arange(64))


def _parts(path):
    run = RunDir(path)
    config = run.config()
    return config, run, load(config.data, config.seed)


def test_two_workers_agree_on_what_has_overflowed_and_what_has_failed(tmp_path):
    workers.start_run(tmp_path / "run", "moons", **SMALL, autocast="float16", method="adv")
    workers.run_on(2, _overflow_and_failure, tmp_path / "run")


@pytest.mark.parametrize("kind", HALF)
def test_the_attack_of_trades_leaves_its_start(tmp_path, kind):
    """Which half precision would round to the sample itself, where there is no gradient."""
    training = made(tmp_path, autocast=kind, method="trades")
    batch = training._batch(next(training.train.batches([torch.arange(200)])), None, Phase.TRAIN)
    attacked = training.method.attack(training.view, batch)
    moved = (attacked.noisy - batch.x).flatten(1).abs().amax(1)
    assert float(moved.min()) > 0.01
    seen = []
    training.network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    training._step(torch.arange(64))
    assert seen[-1] == HALF[kind]


def made(tmp_path, **options) -> Training:
    config, run = workers.start_run(tmp_path / "run", "moons", **{**SMALL, **options})
    return Training(config, run, load(config.data, config.seed), torch.device("cpu"))


def test_a_scale_that_is_too_large_costs_a_step_and_is_halved(tmp_path):
    training = made(tmp_path, autocast="float16")
    training.state.scaler.load_state_dict({**training.state.scaler.state_dict(), "scale": 2.0**40})
    before = [p.clone() for p in training.network.parameters()]
    training._step(torch.arange(64))
    assert training.state.scaler.get_scale() == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before, training.network.parameters(), strict=True))
    training._step(torch.arange(64))
    training.state.position.step = 1
    checkpoint.save(training.run, training.identity, training.state)
    again = Training(training.config, training.run, load(training.config.data, 0), torch.device("cpu"))
    again.begin()
    assert again.state.scaler.state_dict() == training.state.scaler.state_dict()
    assert again.state.scaler.get_scale() == 2.0**38


def test_a_network_that_has_failed_is_told_from_a_large_scale(tmp_path):
    training = made(tmp_path, autocast="float16")
    with torch.no_grad():
        next(training.network.parameters()).fill_(float("nan"))
    with pytest.raises(NumericalError, match=r"The loss became NaN .* or --autocast none\."):
        training._step(torch.arange(64))


def test_a_scale_that_cannot_fall_further_is_a_failure(tmp_path, monkeypatch):
    training = made(tmp_path, autocast="float16")
    training.state.scaler.load_state_dict({**training.state.scaler.state_dict(), "scale": 1.0})
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda gradients: torch.tensor(float("inf")))
    with pytest.raises(NumericalError, match="The gradient became NaN or infinite"):
        training._step(torch.arange(64))


def test_a_step_whose_norm_alone_is_infinite_is_a_failure(tmp_path):
    training = made(tmp_path, autocast="float16")
    training.state.scaler.load_state_dict({**training.state.scaler.state_dict(), "scale": 2.0})
    list(training.network.parameters())[-1].register_hook(lambda gradient: torch.full_like(gradient, 1e25))
    with pytest.raises(NumericalError, match="The gradient became NaN or infinite"):
        training._step(torch.arange(64))


def test_a_checkpoint_from_before_there_was_a_scale(tmp_path):
    training = made(tmp_path)
    training.state.position.step = 1
    checkpoint.save(training.run, training.identity, training.state)
    (file,) = (tmp_path / "run" / "checkpoints").glob("*/state.json")
    state = json.loads(file.read_text())
    assert state.pop("scaler") == {}
    file.write_text(json.dumps(state))
    again = Training(training.config, training.run, load(training.config.data, 0), torch.device("cpu"))
    again.begin()
    assert again.state.position.step == 1


def test_evaluation_is_not_in_half_precision(tmp_path, monkeypatch):
    training = made(tmp_path, autocast="float16")
    seen = []
    training.network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    validation.accuracy(training.network, training.val, training.config)
    validation.robust_accuracy(training.network, training.val, training.val_attacked, training.config, 0.1)
    assert set(seen) == {torch.float32}
    seen.clear()
    training._step(torch.arange(64))
    assert set(seen) == {torch.float16}


def test_the_option_belongs_to_what_a_run_is():
    plain = make_config("moons", {})
    assert with_options(plain, {"autocast": "float16"}).fingerprint() != plain.fingerprint()
    old = to_dict(plain)
    del old["autocast"]  # as a run from before there was the option has saved it
    assert from_dict(old).fingerprint() == plain.fingerprint()
    assert "autocast" not in result_fields(plain)
    assert differences(plain, with_options(plain, {"autocast": "float16"})) == ["autocast"]
    with pytest.raises(ConfigError, match="--autocast float16 goes with --dtype float32, not float64"):
        with_options(plain, {"autocast": "float16", "dtype": "float64"})

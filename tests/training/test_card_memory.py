"""Batches that fit into a card's memory, and float32 that is float32, on the pretend card."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ima_dist.attacks.memory import most_at_once
from ima_dist.attacks.spsa import spsa
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.core import noise
from ima_dist.data.load import load
from ima_dist.launch.elastic import NodeInterface
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet
from ima_dist.training import loop, validation
from ima_dist.training.loop import Training
from ima_dist.training.network import make_network, use_tf32
from ima_dist.worker import tasks
from ima_dist.worker.tasks import train_task
from tests.support.fakecard import CUDA0, fake_card
from tests.support.small_images import cnn
from tests.support.workers import final_state

CPU = torch.device("cpu")
IMAGES = {
    "data.source": "tests.support.small_images:two_classes",
    "model.factory": "tests.support.small_images:cnn",
    "eps_max": 0.2,
    "delta_eps": 0.1,
    "epochs": 1,
    "batch_size": 32,
    "dtype": "float64",
    "attack.steps": 3,
    "attack.bisections": 2,
    "eval.noise": (0.0, 0.1),
    "eval.attacks": ("pgd100", "worst", "white-noise"),
    "eval.steps": 2,
    "eval.val_noise": 0.1,
    "eval.val_steps": 2,
}


def never() -> bool:
    return False


def test_the_memory_of_a_sample_is_measured_and_half_of_the_card_is_filled():
    torch.manual_seed(0)
    network, x = cnn(4, (1, 10, 10)), torch.rand(8, 1, 10, 10)
    y = torch.zeros(8, dtype=torch.int64)
    assert most_at_once(network, x, y) == sys.maxsize
    with fake_card(memory=1 << 30) as card:
        network, x, y = network.to(CUDA0), x.to(CUDA0), y.to(CUDA0)
        card.reset()
        large = most_at_once(network, x, y)
        assert not card.waits
    with fake_card(memory=1 << 26):
        assert most_at_once(network.to(CUDA0), x, y) == large / 16
    # A sample has 100 values; the first layer alone makes several times as many.
    assert (1 << 29) / (64 * 400 + 4 * 4000) / 2 < large <= (1 << 29) / (64 * 400 + 4 * 100)


def test_a_small_card_takes_smaller_batches_with_the_same_results(tmp_path, monkeypatch):
    config = make_config("fashion_mnist", IMAGES)
    runs = {name: RunDir.create(config, tmp_path / name) for name in ("cpu", "small", "uncut")}
    train_task(config, runs["cpu"], CPU, never)
    peaks, memory = {}, 5 << 18  # room for a training step, whose batch is not cut
    for name in ("small", "uncut"):
        if name == "uncut":
            for module in (loop, tasks):
                monkeypatch.setattr(module, "most_at_once", lambda *_: sys.maxsize)
        with fake_card(memory) as card:
            train_task(config, runs[name], CUDA0, never)
            peaks[name] = card.highest
    assert peaks["small"] <= memory < peaks["uncut"]
    (weights, margins), (expected, expected_margins) = (final_state(config, tmp_path / n) for n in ("small", "cpu"))
    assert all(torch.allclose(weights[k], expected[k], rtol=0, atol=1e-12) for k in expected)
    assert torch.allclose(margins, expected_margins, rtol=0, atol=1e-9)
    order = [(column, "ascending") for column in ("attack", "loss", "noise", "index")]
    small, cpu = (read_parquet(runs[name].outcomes_path).sort_by(order) for name in ("small", "cpu"))
    assert small.equals(cpu)


def test_spsa_is_bounded_by_values_and_by_images(monkeypatch):
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.numel())
        return x.flatten(1)[:, :2]

    x = torch.zeros(3, 1, 8, 8)
    x[:, 0, 0, 0] = 1.0
    y, keys = torch.zeros(3, dtype=torch.int64), noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(3))
    whole = spsa(network, x, y, 0.1, keys, norm="linf", samples=6, iterations=2)
    assert max(seen) == 2 * 3 * 6 * 64
    monkeypatch.setattr(importlib.import_module("ima_dist.attacks.spsa"), "_VALUES_AT_ONCE", 4 * 64)
    seen.clear()
    cut = spsa(network, x, y, 0.1, keys, norm="linf", samples=6, iterations=2)
    # Two images and their mirror images, of three samples that are attacked together.
    assert max(seen) <= 4 * 64
    torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize("asked", [False, True])
def test_tf32_is_on_only_in_training_that_asks_for_it(asked, tmp_path, monkeypatch):
    states: dict[str, set[tuple[bool, bool]]] = {}

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            now = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
            states.setdefault(name, set()).add(now)
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    for place, name in ((Training, "_step"), (Training, "_margin_pass"), (validation, "accuracy"), (tasks, "evaluate")):
        watch(place, name)
    # As a user's module may leave it.
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    config = make_config("fashion_mnist", {**IMAGES, "dtype": "float32", "tf32": asked, "epochs": 2})
    try:
        train_task(config, RunDir.create(config, tmp_path / "run"), CPU, never)
    finally:
        use_tf32(False)
    training, off = {(asked, asked)}, {(False, False)}
    assert states == {"_step": training, "_margin_pass": training, "accuracy": off, "evaluate": off}


def test_tf32_alters_the_fingerprint_only_where_it_is_used():
    plain, used = make_config("moons", {}), make_config("moons", {"tf32": True})
    assert plain.fingerprint() == make_config("moons", {"tf32": False}).fingerprint() != used.fingerprint()
    with pytest.raises(ConfigError, match="--tf32 goes with --dtype float32, not float64"):
        make_config("moons", {"tf32": True, "dtype": "float64"})


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has one switch for each library")
def test_tf32_of_the_whole_process_is_overruled():
    torch.backends.fp32_precision = "tf32"
    use_tf32(False)
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_drawing_weights_asks_no_card_for_its_generator(monkeypatch):
    def asked(*_: Any) -> None:
        raise AssertionError("a card was asked")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", asked)
    config = make_config("moons", {"data.subset": 40})
    before = torch.get_rng_state()
    make_network(config, load(config.data, 0))
    assert torch.get_rng_state().equal(before)


def test_collectives_wait_a_day_for_a_slower_worker():
    assert NodeInterface().timeout_s == 24 * 3600


def test_a_run_directory_is_not_needed_to_measure(tmp_path: Path):
    config = make_config("fashion_mnist", IMAGES)
    with fake_card(memory=1 << 21):
        training = Training(config, RunDir(tmp_path), load(config.data, 0), CUDA0)
        training.begin()
        assert training.at_once < 4 * config.batch_size

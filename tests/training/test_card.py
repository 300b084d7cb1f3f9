"""Training, resuming, evaluating and auditing on a pretend CUDA card: no CPU tensor strays in, all equals the CPU.

The card computes with the CPU's kernels, so that equal means equal bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.core.distributed import Interrupted
from ima_dist.data.load import load
from ima_dist.evaluation import autoattack as autoattack_module
from ima_dist.evaluation.autoattack import autoattack
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet
from ima_dist.training.loop import Training
from ima_dist.training.reporter import Reporter
from ima_dist.worker.tasks import audit_task, evaluate_task, train_task
from tests.support import small_images
from tests.support.evaluating import short_autoattack
from tests.support.fakecard import CUDA0, fake_card
from tests.support.workers import final_state

CPU = torch.device("cpu")


@contextlib.contextmanager
def on(device: torch.device) -> Iterator[None]:
    """The card, if the device is one; it must then have been used."""
    if device.type == "cpu":
        yield
        return
    with fake_card() as card:
        yield
    assert card.kernels


def assert_equal_states(config: Config, ours: Path, theirs: Path) -> None:
    (weights, margins), (expected, expected_margins) = final_state(config, ours), final_state(config, theirs)
    assert all(weights[name].equal(expected[name]) for name in expected)
    assert (margins is None) == (expected_margins is None)
    assert margins is None or margins.equal(expected_margins)


def history_of(run: RunDir) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in run.read_history()]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ima", {}),
        ("ima", {"margin_update": "online"}),
        ("ima", {"norm": "l2"}),
        ("ima", {"norm": "l2", "margin_rule": "journal"}),
        ("ima", {"margin_rule": "ame"}),
        ("ce", {}),
        ("adv", {}),
        ("rand", {}),
        ("rand", {"norm": "l2"}),
        ("trades", {}),
        ("mma", {}),
        ("mma", {"norm": "l2"}),
        ("ddn", {"norm": "l2"}),
        ("iaat", {}),
        ("fat", {}),
        ("nfgsm", {}),
    ],
)
def test_every_method_trains_on_a_card_as_on_the_cpu(method, options, tmp_path):
    small = {"data.subset": 140, "epochs": 2, "batch_size": 64, "dtype": "float64", "eval.val_noise": 0.1}
    short = {"attack.steps": 5, "attack.bisections": 3, "eval.val_steps": 3, "eval.val_samples": 50}
    margins = {"delta_eps": 0.1} if method in ("ima", "mma") else {}
    config = make_config("moons", {"method": method, **small, **short, **margins, **options})
    data = load(config.data, config.seed)
    for device in (CPU, CUDA0):
        with on(device):
            Training(config, RunDir.create(config, tmp_path / device.type), data, device).fit()
    assert_equal_states(config, tmp_path / "cuda", tmp_path / "cpu")
    assert history_of(RunDir(tmp_path / "cuda")) == history_of(RunDir(tmp_path / "cpu"))


SMALL = {"epochs": 2, "batch_size": 32, "attack.steps": 4, "attack.bisections": 3, "delta_eps": 0.1}
ATTACKS = {
    "eval.attacks": ("pgd100", "worst", "pgd-mma", "spsa", "minimal", "white-noise"),
    "eval.steps": 3,
    "eval.samples": 8,
    "eval.spsa_samples": 16,
}
IMAGES = {
    "data.source": "tests.support.small_images:four_classes",
    "model.factory": "tests.support.small_images:cnn",
    "eps_max": 0.2,
    "eval.noise": (0.0, 0.1, 0.2),
}


def whole_run(config: Config, run: RunDir, device: torch.device, stop_at: int, audited: int) -> None:
    """Train with an interruption, continue, evaluate the first epoch too, audit the margins of a few samples."""
    looks = 0

    def stop() -> bool:
        nonlocal looks
        looks += 1
        return looks == stop_at

    def never() -> bool:
        return False

    with pytest.raises(Interrupted):
        train_task(config, run, device, stop)
    train_task(config, run, device, never)
    evaluate_task(config, run, device, never, [1])
    if audited:
        audit_task(config, run, device, never, audited)


def outcomes_of(run: RunDir) -> pa.Table:
    columns = ("attack", "loss", "noise", "epoch", "index")
    return read_parquet(run.outcomes_path).sort_by([(column, "ascending") for column in columns])


@pytest.mark.parametrize(
    ("preset", "options", "audited"),
    [
        ("moons", {"data.subset": 140, "eval.noise": (0.0, 0.2)}, 4),
        ("fashion_mnist", {**IMAGES}, 2),
        ("fashion_mnist", {**IMAGES, "norm": "l2", "eps_max": 1.0, "eval.noise": (0.0, 0.5)}, 2),
        (
            "cifar10",
            {
                **IMAGES,
                "data.source": "tests.support.small_images:augmented",
                "model.factory": "tests.support.small_images:batch_norm_cnn",
                "optimizer.lr": 0.01,
            },
            2,
        ),
        ("covid_ct", {**IMAGES, "data.source": "tests.support.small_images:two_classes"}, 0),
    ],
    ids=["moons", "images-linf", "images-l2", "batch-norm-and-crops", "two-named-classes"],
)
def test_a_run_is_interrupted_continued_evaluated_and_audited_on_a_card(
    preset, options, audited, tmp_path, monkeypatch
):
    # Every step is an occasion to stop: the third is in the middle of the first epoch.
    monkeypatch.setattr(Reporter, "due", lambda self: True)
    config = make_config(preset, {**SMALL, **ATTACKS, **options})
    runs = {device.type: RunDir.create(config, tmp_path / device.type) for device in (CPU, CUDA0)}
    for device in (CPU, CUDA0):
        with on(device):
            whole_run(config, runs[device.type], device, stop_at=3, audited=audited)
    assert_equal_states(config, tmp_path / "cuda", tmp_path / "cpu")
    assert outcomes_of(runs["cuda"]).equals(outcomes_of(runs["cpu"]))
    assert runs["cuda"].summary()["clean_accuracy"] == runs["cpu"].summary()["clean_accuracy"]
    if audited:
        assert read_parquet(runs["cuda"].audit_path).equals(read_parquet(runs["cpu"].audit_path))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.5)])
def test_autoattack_runs_on_a_card(norm, eps, monkeypatch):
    monkeypatch.setattr(autoattack_module, "AutoAttack", short_autoattack)
    torch.manual_seed(3)
    network, x = small_images.cnn(4, (1, 10, 10)), torch.rand(12, 1, 10, 10)
    y = network(x).argmax(1)
    settings = {"norm": norm, "seed": 0, "box": (0.0, 1.0)}
    expected = autoattack(network, x, y, eps, **settings)
    with fake_card():
        found = autoattack(network.to(CUDA0), x.to(CUDA0), y.to(CUDA0), eps, **settings).cpu()
    assert found.equal(expected)
    assert 0 < (expected != y).sum() < len(y)

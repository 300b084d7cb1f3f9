"""Two workers, each on a pretend CUDA card, with collectives that refuse CPU tensors, as NCCL does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ima_dist.config.presets import make_config
from ima_dist.data.load import load
from ima_dist.margins import store
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training
from tests.support.fakecard import CUDA0, CardTensor, fake_card
from tests.support.workers import final_state, largest_difference, run_on

COMMON = {
    "epochs": 2,
    "batch_size": 32,
    "dtype": "float64",
    "attack.steps": 4,
    "attack.bisections": 3,
    "eps_max": 0.2,
    "eval.val_noise": 0.1,
    "eval.val_steps": 2,
}
POINTS = {**COMMON, "data.subset": 130}
# The last batch of 129 samples holds one: a worker has none.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "online-sharded": ("moons", {**POINTS, "data.subset": 129, "delta_eps": 0.1, "margin_update": "online"}, False),
    "ima-replicated": ("moons", {**POINTS, "delta_eps": 0.1}, True),
    "mma-sharded": ("moons", {**POINTS, "data.subset": 129, "delta_eps": 0.1, "method": "mma"}, False),
    "trades": ("moons", {**POINTS, "method": "trades"}, True),
    "batch-norm-and-crops": (
        "cifar10",
        {
            **COMMON,
            "delta_eps": 0.1,
            "optimizer.lr": 0.01,
            "data.source": "tests.support.small_images:augmented",
            "model.factory": "tests.support.small_images:batch_norm_cnn",
        },
        True,
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, trained by two workers on the CPU and by two on cards: <case>/cpu and <case>/cuda."""
    folder = tmp_path_factory.mktemp("two")
    for case, (preset, options, _) in CASES.items():
        for device in ("cpu", "cuda"):
            RunDir.create(make_config(preset, options), folder / case / device)
    run_on(2, train_all, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_workers_train_on_cards_as_on_the_cpu(case, trained):
    preset, options, _ = CASES[case]
    config = make_config(preset, options)
    weights, margins = final_state(config, trained / case / "cuda")
    expected, expected_margins = final_state(config, trained / case / "cpu")
    # DDP adds the gradients in another order than the hooks that stand in for it.
    assert largest_difference(weights, expected) < 1e-12
    assert (margins is None) == (expected_margins is None)
    assert margins is None or torch.allclose(margins, expected_margins, rtol=0, atol=1e-12)


def train_all(folder: Path) -> None:
    """One worker's part of every case, on the CPU, then on its card."""
    for case, (preset, options, replicated) in CASES.items():
        config = make_config(preset, options)
        data = load(config.data, config.seed)
        limit = store.REPLICATE_UP_TO if replicated else 0
        with mock.patch.multiple(store, REPLICATE_UP_TO=limit, _DELIVER_EVERY=2, _CHUNK=16):
            Training(config, RunDir(folder / case / "cpu"), data, torch.device("cpu")).fit()
            with mock.patch.multiple(dist, **nccl()), fake_card(), without_ddp():
                Training(config, RunDir(folder / case / "cuda"), data, CUDA0).fit()


def nccl() -> dict[str, Callable[..., Any]]:
    """The collectives of tensors, for tensors on a card only; what is on the card travels by gloo."""

    def inner(value: Any) -> Any:
        if isinstance(value, CardTensor):
            return value.elem
        if isinstance(value, torch.Tensor):
            raise RuntimeError("No backend type associated with device type cpu")
        return [inner(part) for part in value] if isinstance(value, list) and value else value

    def on_cards(collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def call(*arguments: Any, **options: Any) -> Any:
            return collective(*map(inner, arguments), **options)

        return call

    return {name: on_cards(getattr(dist, name)) for name in ("all_reduce", "all_gather", "all_to_all_single")}


def without_ddp() -> Any:
    """DistributedDataParallel with hooks on the parameters in place of its C++ reducer, which wants a real card."""

    def init(self: DistributedDataParallel, network: nn.Module, **_: Any) -> None:
        nn.Module.__init__(self)
        self.module = network
        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(average)

    def average(parameter: torch.Tensor) -> None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()

    # The product asks which options the constructor knows.
    init = functools.wraps(DistributedDataParallel.__init__)(init)
    forward = lambda self, x: self.module(x)  # noqa: E731
    return mock.patch.multiple(DistributedDataParallel, __init__=init, forward=forward)

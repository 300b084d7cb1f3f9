"""Peak memory of attacks, training steps and spsa at the sizes the presets lead to, also within 12 GB (Titan V)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu.check import Check, Skip
from benchmarks.gpu.data import small_network
from ima_dist import models
from ima_dist.attacks.common import attack_mode, cross_entropy, logits_and_gradient
from ima_dist.attacks.memory import most_at_once
from ima_dist.data.batch_sizes import attack_batch_size

_TITAN_V = 12e9
# name, network, shape of a sample, global batch
_Case = tuple[str, Callable[..., nn.Module], tuple[int, ...], int]
_CASES: list[_Case] = [
    ("cifar10", models.wrn_28_4, (3, 32, 32), 128),
    ("cifar10, global batch 1024", models.wrn_28_4, (3, 32, 32), 1024),
    ("covid_ct", models.resnet18_in, (1, 224, 224), 32),
]
_QUICK_CASES: list[_Case] = [("small", functools.partial(small_network, 10), (1, 28, 28), 8)]
# Images that spsa takes at once, and their values.
_SPSA, _SPSA_VALUES = 4096, 1 << 22


def run(check: Check) -> None:
    if not check.on_card:
        raise Skip("needs a card")
    total = torch.cuda.get_device_properties(check.device).total_memory
    try:
        for limit in (float(total), _TITAN_V):
            torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), check.device)
            for case, factory, shape, batch in _QUICK_CASES if check.quick else _CASES:
                with check.attempt("memory", case=case, limit_gb=limit / 1e9):
                    check.need_time()
                    network = factory(input_shape=shape).to(check.device)
                    fitting = _fitting(network, shape, limit, check.device)
                    check.say("memory", case=case, limit_gb=limit / 1e9, what="samples at once", samples=fitting)
                    for what, use, samples in (
                        ("attack step", attack_step, min(attack_batch_size(batch, shape), fitting)),
                        # Clean and noisy samples; a larger global batch is for several workers.
                        ("training step", training_step, 2 * min(batch, 128)),
                        ("forward pass of spsa", forward_pass, min(_SPSA, _SPSA_VALUES // math.prod(shape))),
                    ):
                        peak = _peak_gb(use, network, (samples, *shape), check.device)
                        found = {"out_of_memory": True} if peak is None else {"peak_gb": peak}
                        which = {"case": case, "limit_gb": limit / 1e9, "what": what, "samples": samples}
                        if what == "attack step":
                            check.judge("memory", peak is not None, **which, **found)
                        else:
                            check.say("memory", **which, **found)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, check.device)


def _fitting(network: nn.Module, shape: tuple[int, ...], limit: float, device: torch.device) -> int:
    """``most_at_once`` on a card with ``limit`` bytes."""
    x, y = torch.rand(8, *shape, device=device), torch.zeros(8, dtype=torch.int64, device=device)
    torch.cuda.empty_cache()

    def free(_: torch.device) -> tuple[int, int]:
        return int(limit) - torch.cuda.memory_reserved(device), int(limit)

    with mock.patch.object(torch.cuda, "mem_get_info", free):
        return most_at_once(network, x, y)


def _peak_gb(
    use: Callable[[nn.Module, Tensor, Tensor], None], network: nn.Module, shape: tuple[int, ...], device: torch.device
) -> float | None:
    """Most memory in use at once, without the network's own; None if the card has too little."""
    # What is cached counts against the limit.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        use(network, torch.rand(*shape, device=device), torch.zeros(shape[0], dtype=torch.int64, device=device))
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9
    except torch.OutOfMemoryError:
        return None
    finally:
        network.zero_grad(set_to_none=True)


def attack_step(network: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad(), attack_mode(network):
        logits_and_gradient(network, x, y, cross_entropy)


def training_step(network: nn.Module, x: Tensor, y: Tensor) -> None:
    cross_entropy(network.train()(x), y).sum().backward()


def forward_pass(network: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad(), attack_mode(network):
        network(x)

"""Keyed random numbers and crops: integers must be equal on CPU and card bit for bit, starts to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.check import Check
from ima_dist.core import noise
from ima_dist.data.augment import augment

_CLOSE = 1e-12


def run(check: Check) -> None:
    def keys(device: torch.device) -> Tensor:
        return noise.sample_keys(3, 5, 1, torch.arange(1000, device=device))

    def crops(device: torch.device) -> Tensor:
        images = torch.arange(20 * 3 * 32 * 32.0, device=device).view(20, 3, 32, 32)
        return augment(images, torch.arange(20, device=device), 1, 2)

    def starts(device: torch.device, norm: str) -> Tensor:
        return noise.start(keys(device)[:64], torch.zeros(64, 784, dtype=torch.float64, device=device), 0.3, norm)

    cpu = torch.device("cpu")
    for name, made in (("keys", keys), ("crops", crops)):
        check.judge("noise", made(cpu).equal(made(check.device).cpu()), of=name)
    for norm in ("linf", "l2"):
        apart = float((starts(cpu, norm) - starts(check.device, norm).cpu()).abs().max())
        check.judge("noise", apart < _CLOSE, of=f"starts, {norm}", largest_difference=apart)

"""Every attack on the CPU and on the card, in float64, with the same starts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.check import Check
from benchmarks.gpu.fixed import bpgd_fixed
from ima_dist.attacks import anpgd, bpgd, ddn, pgd, spsa, worst
from ima_dist.core import noise
from ima_dist.models import fashion_mnist_cnn

BOX = (0.0, 1.0)
_CLOSE = 1e-6
Attack = Callable[[nn.Module, Tensor, Tensor, Tensor, str, float], Tensor]


def run(check: Check) -> None:
    torch.manual_seed(0)
    network = (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) if check.quick else fashion_mnist_cnn()).double().eval()
    x = torch.rand(8 if check.quick else 64, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        y = network(x).argmax(1)
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(len(x)))
    on_card = copy.deepcopy(network).to(check.device)
    for norm, eps in (("linf", 0.02), ("l2", 0.5)):
        for name, attack in ATTACKS.items():
            with check.attempt("attacks", attack=name, norm=norm):
                check.need_time()
                expected = attack(network, x, y, keys, norm, eps)
                moved = [tensor.to(check.device) for tensor in (x, y, keys)]
                found = attack(on_card, moved[0], moved[1], moved[2], norm, eps).cpu()
                apart = (expected - found).abs().reshape(len(expected), -1).amax(1)
                # A gradient of exactly zero on one device and of rounding noise on the other has another sign.
                many = int((apart > _CLOSE).sum())
                passed = many <= len(apart) // 10
                check.judge("attacks", passed, attack=name, norm=norm, samples_apart=many, largest=float(apart.max()))
    if not check.quick:
        with check.attempt("attacks", attack="autoattack", norm="linf"):
            _autoattack(check, network, x[:16], y[:16])


def _autoattack(check: Check, network: nn.Module, x: Tensor, y: Tensor) -> None:
    """AutoAttack draws its random numbers on the device, so that CPU and card agree in tendency only."""
    from ima_dist.evaluation.autoattack import autoattack

    check.need_time()
    network = network.float()
    broken = []
    for device in (torch.device("cpu"), check.device):
        settings: dict[str, Any] = {"norm": "linf", "seed": 0, "box": BOX}
        predicted = autoattack(network.to(device), x.float().to(device), y.to(device), 0.02, **settings)
        broken.append(int((predicted.cpu() != y).sum()))
    check.say("attacks", attack="autoattack", norm="linf", broken=broken)


def _pgd(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, norm: str, eps: float) -> Tensor:
    return pgd(network, x, y, eps, norm=norm, start=noise.start(keys, x, eps, norm), box=BOX)


def _bpgd(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, norm: str, eps: float) -> Tensor:
    return bpgd(network, x, y, eps, norm=norm, start=noise.start(keys, x, eps, norm), box=BOX).x


def _bpgd_fixed(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, norm: str, eps: float) -> Tensor:
    return bpgd_fixed(network, x, y, eps, norm=norm, start=noise.start(keys, x, eps, norm), box=BOX).x


def _worst(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, norm: str, eps: float) -> Tensor:
    start = functools.partial(noise.start, keys, x, norm=norm)
    return worst(network, x, y, [eps / 4, eps], norm=norm, steps=20, start=start, box=BOX)[0].T


def _anpgd(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, norm: str, eps: float) -> Tensor:
    start = noise.start(keys, x, eps, norm)
    return anpgd(network, x, y, eps, norm=norm, max_eps=2 * eps, start=start, box=BOX).distance


def _ddn(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, norm: str, eps: float) -> Tensor:
    return ddn(network, x, y, box=BOX).x


def _spsa(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, norm: str, eps: float) -> Tensor:
    return spsa(network, x[:4], y[:4], eps, keys[:4], norm=norm, samples=32, iterations=4, box=BOX)


def _advertorch(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, norm: str, eps: float, *, loss: str) -> Tensor:
    from ima_dist.evaluation.advertorch_pgd import advertorch_pgd

    settings: dict[str, Any] = {"norm": norm, "steps": 20, "step_scale": 4.0, "loss": loss, "box": BOX}
    return advertorch_pgd(network, x, y, eps, start=noise.start(keys, x, eps, norm), **settings)


ATTACKS: dict[str, Attack] = {
    "pgd": _pgd,
    "bpgd": _bpgd,
    "bpgd with one shape": _bpgd_fixed,
    "worst": _worst,
    "anpgd": _anpgd,
    "ddn": _ddn,
    "spsa": _spsa,
    "advertorch, ce": functools.partial(_advertorch, loss="ce"),
    "advertorch, margin": functools.partial(_advertorch, loss="margin"),
}

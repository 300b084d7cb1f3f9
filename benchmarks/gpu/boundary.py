"""``bpgd`` launched in four ways: as it is, with one shape, that compiled, and that as a CUDA graph."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.check import Check, Skip
from benchmarks.gpu.fixed import bpgd_fixed
from ima_dist import models
from ima_dist.attacks import bpgd
from ima_dist.attacks.compiled import Compiled
from ima_dist.training.graphs import Captured, on_another_stream

# preset, network, shape of a sample, steps of the attack
_CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int]] = [
    ("moons", models.moons_mlp, (2,), 20),
    ("fashion_mnist", models.fashion_mnist_cnn, (1, 28, 28), 20),
    ("cifar10", models.wrn_28_4, (3, 32, 32), 10),
]


def run(check: Check) -> None:
    for preset, factory, shape, steps in _CASES[:1] if check.quick else _CASES:
        torch.manual_seed(0)
        network = factory().to(check.device).eval()
        for batch in (4,) if check.quick else (128, 512):
            x = torch.rand(batch, *shape, device=check.device)
            with torch.no_grad():
                y = network(x).argmax(1)
            eps = torch.full((batch,), 0.02, device=check.device)
            start = (torch.rand_like(x) * 2 - 1) * 0.02
            settings = {"norm": "linf", "steps": 2 if check.quick else steps, "start": start, "box": (0.0, 1.0)}
            _compare(check, network, (x, y, eps), settings, {"preset": preset, "batch": batch})


def _compare(
    check: Check,
    network: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    settings: dict[str, Any],
    which: dict[str, Any],
) -> None:
    fixed = functools.partial(bpgd_fixed, network, *batch, **settings)
    expected = fixed().x
    with check.attempt("boundary", **which):
        check.need_time()
        found = bpgd(network, *batch, **settings)
        milliseconds = _milliseconds(functools.partial(bpgd, network, *batch, **settings), check)
        crossing = float(found.crossed.float().mean())
        apart = _apart(found.x, expected)
        check.say(
            "boundary", **which, launched="as it is", milliseconds=milliseconds, samples_apart=apart, crossing=crossing
        )
        check.say("boundary", **which, launched="with one shape", milliseconds=_milliseconds(fixed, check))
    with (
        check.attempt("boundary", **which, launched="compiled"),
        torch.compiler.set_stance("force_eager" if check.quick else "default"),
    ):
        check.need_time()
        compiled = functools.partial(bpgd_fixed, Compiled(network), *batch, **settings)
        apart = _apart(compiled().x, expected)
        milliseconds = _milliseconds(compiled, check)
        check.say("boundary", **which, launched="compiled", milliseconds=milliseconds, samples_apart=apart)
    with check.attempt("boundary", **which, launched="graph"):
        check.need_time()
        if not check.on_card:
            raise Skip("needs a card")
        call, given = _ready(network, batch, settings)
        captured = Captured(call, given)
        milliseconds = _milliseconds(lambda: captured(given), check)
        apart = _apart(captured(given), expected)
        check.say("boundary", **which, launched="graph", milliseconds=milliseconds, samples_apart=apart)


def _apart(found: Tensor, expected: Tensor) -> int:
    """Samples that differ: in float32, another order of additions turns the sign of a gradient now and then."""
    return int(((found - expected).abs().flatten(1).amax(1) > 1e-4).sum())


def _milliseconds(call: Callable[[], Any], check: Check) -> float:
    call()
    repeats = 1 if check.quick else 10
    check.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    check.synchronize()
    return 1000 * (time.perf_counter() - began) / repeats


def _ready(
    network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], settings: dict[str, Any]
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The attack as a call that can be captured, and the tensors that it is given."""
    options = {name: value for name, value in settings.items() if name != "start"}

    def call(x: Tensor, y: Tensor, eps: Tensor, start: Tensor) -> Tensor:
        return bpgd_fixed(network, x, y, eps, start=start, **options).x

    given = [*batch, settings["start"]]
    on_another_stream(call, given, torch.cuda.Stream())
    return call, given

"""Throughput of IMA's training step by the samples that a card has of a batch: which batch size pays."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu.check import Check
from benchmarks.gpu.runs import prepared
from ima_dist.data.order import batches

#: preset, data, samples of a card in a step
_CASES = [
    ("fashion_mnist", "fashion", (16, 32, 64, 128, 256, 512, 1024)),
    ("cifar10", "cifar", (16, 32, 64, 128, 256, 512)),
]
_STEPS = 4
# A batch size pays if this share of the best throughput is reached.
_NEARLY = 0.9
_QUICK = {"attack.steps": 2, "attack.bisections": 2, "model.factory": "benchmarks.gpu.data:small_network"}


def run(check: Check) -> None:
    for preset, source, sizes in _CASES:
        found: dict[int, float] = {}
        for size in (2, 4) if check.quick else sizes:
            with check.attempt("batches", preset=preset, batch=size):
                check.need_time()
                found[size] = _samples_per_second(check, preset, source, size)
                check.say("batches", preset=preset, batch=size, samples_per_second=found[size])
            if check.on_card:
                torch.cuda.empty_cache()
        if found:
            check.say("batches", preset=preset, **smallest_that_pays(found))


def smallest_that_pays(found: dict[int, float]) -> dict[str, Any]:
    """The smallest batch with 0.9 of the best throughput, and what a card with 16 samples reaches of the best."""
    best = max(found.values())
    pays = min(size for size, rate in found.items() if rate >= _NEARLY * best)
    return {"pays": pays, "share_of_best": {size: round(rate / best, 3) for size, rate in found.items()}}


def _samples_per_second(check: Check, preset: str, source: str, size: int) -> float:
    """Of all steps but the first of an epoch, in float32 as by default."""
    options: dict[str, Any] = {
        "data.source": f"benchmarks.gpu.data:{source}",
        "data.subset": max(size * _STEPS, 20),
        "batch_size": size,
        "epochs": 1,
        "delta_eps": 0.05,
        "margin_update": "online",
        **(_QUICK if check.quick else {}),
    }
    with prepared(check, preset, options, check.device) as training:
        training.begin()
        first, *others = list(batches(len(training.train), size, training.config.seed, 0))[:_STEPS]
        training._step(first)
        check.synchronize()
        began = time.perf_counter()
        for batch in others:
            training._step(batch)
        check.synchronize()
        return size * len(others) / (time.perf_counter() - began)

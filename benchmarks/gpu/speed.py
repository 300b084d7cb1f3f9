"""Throughput of IMA's training on three networks, in up to nine variants of precision, memory format and attack."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu.check import Check, Skip
from benchmarks.gpu.data import FASHION_SAMPLES
from benchmarks.gpu.fixed import bpgd_fixed
from benchmarks.gpu.runs import prepared
from ima_dist.data.order import batches
from ima_dist.methods import ima
from ima_dist.training.loop import Training

# Dense operations in 10^12 per second, from NVIDIA's data sheets of the SXM modules (V100: also its PCIe card).
_PEAKS: dict[str, dict[str, float]] = {
    "H100 80GB HBM3": {"float32": 67, "tf32": 495, "float16": 989, "bfloat16": 989},
    "H200": {"float32": 67, "tf32": 495, "float16": 989, "bfloat16": 989},
    "A100": {"float32": 19.5, "tf32": 156, "float16": 312, "bfloat16": 312},
    "V100": {"float32": 15.7, "float16": 125},
}
# precision, then any of: fixed (an attack with one shape), compiled (--compile), graphs (--cuda-graphs),
# channels_last, online
_VARIANTS: list[tuple[str, tuple[str, ...]]] = [
    ("float32", ()),
    ("tf32", ()),
    ("float16", ()),
    ("bfloat16", ()),
    ("bfloat16", ("channels_last",)),
    ("tf32", ("fixed",)),
    ("tf32", ("online",)),
    ("tf32", ("fixed", "compiled")),
    ("bfloat16", ("fixed", "compiled", "channels_last")),
]
# For a network that is bound by launching; larger ones neither capture nor compile an attack that shrinks its batches.
_LAUNCHING: list[tuple[str, tuple[str, ...]]] = [
    ("float32", ()),
    ("float32", ("graphs",)),
    ("float32", ("compiled",)),
    ("float32", ("compiled", "graphs")),
]
_QUICK: dict[str, Any] = {"attack.steps": 2, "attack.bisections": 2}
_SMALL = {"model.factory": "benchmarks.gpu.data:small_network"}
# preset, data, steps of the measured epoch
_CASES = [("moons", "moons", 30), ("fashion_mnist", "fashion", 30), ("cifar10", "cifar", 8)]


def run(check: Check) -> None:
    for preset, source, steps in _CASES:
        for precision, how in _LAUNCHING if preset == "moons" else _VARIANTS:
            if "channels_last" in how and preset != "cifar10":
                continue  # One channel in, two layers: nothing to gain.
            with check.attempt("speed", preset=preset, precision=precision, how=how):
                check.need_time()
                _measure(check, preset, source, steps, precision, how)
            if check.on_card:
                torch.cuda.empty_cache()


def _measure(check: Check, preset: str, source: str, steps: int, precision: str, how: tuple[str, ...]) -> None:
    """Two epochs of ``steps`` steps; the first is for warming up, the second is reported."""
    which = {"preset": preset, "precision": precision, "how": how}
    batch = 8 if check.quick else 128
    options: dict[str, Any] = {
        "data.source": f"benchmarks.gpu.data:{source}",
        "data.subset": batch * (3 if check.quick else steps),
        "batch_size": batch,
        "epochs": 2,
        "delta_eps": 0.05,
        "margin_update": "online" if "online" in how else "epoch",
        "cuda_graphs": "graphs" in how,
        "compile": "compiled" in how,
        "autocast": precision if precision in ("float16", "bfloat16") else "none",
        **({"model.factory": "benchmarks.gpu.data:wrn_channels_last"} if "channels_last" in how else {}),
        **(_QUICK if check.quick else {}),
        **(_SMALL if check.quick and preset != "moons" else {}),
    }
    with _settings(check, precision, how), prepared(check, preset, options, check.device) as training:
        if check.on_card:
            torch.cuda.reset_peak_memory_stats(check.device)
        training.fit()
        row, samples = training.history[-1], len(training.train)
        seconds = row["train_seconds"] + (row["margin_seconds"] or 0.0)
        step = row["train_seconds"] * batch / samples
        found: dict[str, Any] = {
            "milliseconds_per_step": 1000 * step,
            "milliseconds_of_margin_pass": 1000 * (row["margin_seconds"] or 0.0),
            "samples_per_second": samples / seconds,
            "noisy_share": row["noisy_samples"] / samples,
            "passes_per_sample": row["evaluations"] / samples,
            f"seconds_per_epoch_of_{FASHION_SAMPLES}": FASHION_SAMPLES * seconds / samples,
        }
        if check.on_card:
            found["peak_gb"] = torch.cuda.max_memory_allocated(check.device) / 1e9
        check.say("speed", **which, **found)
        first, second, *_ = batches(samples, batch, training.config.seed, 0)
        if not {"compiled", "graphs"} & set(how):  # their operations bypass torch's dispatcher
            check.say("operations", **which, **_operations(check, training, first, precision, step))
        if "compiled" not in how:
            with check.attempt("kernels", **which):
                if not check.on_card:
                    raise Skip("needs a card")
                check.say("kernels", **which, **_kernels(training, second))


@contextlib.contextmanager
def _settings(check: Check, precision: str, how: tuple[str, ...]) -> Iterator[None]:
    """TF32, cuDNN's search for the fastest algorithm where shapes stay the same, and the attack."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark)
    try:
        cudnn.allow_tf32 = products.allow_tf32 = precision == "tf32"
        cudnn.benchmark = "fixed" in how
        with (
            mock.patch.object(ima, "bpgd", bpgd_fixed if "fixed" in how else ima.bpgd),
            torch.compiler.set_stance("force_eager" if check.quick else "default"),
        ):
            yield
    finally:
        cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = before


def _operations(
    check: Check, training: Training, batch: torch.Tensor, precision: str, seconds: float
) -> dict[str, Any]:
    """Operations of a training step, of which one takes ``seconds``; it is counted in one more step, not timed."""
    with Flops() as flops:
        training._step(batch)
    per_second = flops.total / seconds / 1e12
    found = {"tera_operations_per_step": flops.total / 1e12, "tera_operations_per_second": per_second}
    if not check.on_card:
        return found
    name = torch.cuda.get_device_name(check.device)
    peak = next((peaks.get(precision) for card, peaks in _PEAKS.items() if card in name), None)
    return {**found, "share_of_peak": peak and per_second / peak}


class Flops(TorchDispatchMode):
    """Counts the operations of convolutions and matrix products.

    torch's FlopCounterMode adds hooks to modules, and those refuse ``torch.autograd.grad``.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _kernels(training: Training, batch: torch.Tensor) -> dict[str, Any]:
    """Number and time of the kernels of one step, by the profiler, which slows the host down."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        torch.cuda.synchronize()
        began = time.perf_counter()
        training._step(batch)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    ran = [event for event in found.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    # Annotations such as the optimiser's span kernels that are listed themselves.
    ran = [event for event in ran if not getattr(event, "is_user_annotation", False)]
    busy = sum(event.device_time_total for event in ran) / 1e6
    return {
        "kernels_per_step": len(ran),
        "busy_share_while_profiled": busy / seconds,
        "microseconds_per_kernel": 1e6 * busy / max(len(ran), 1),
    }

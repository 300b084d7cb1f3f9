"""``python -m benchmarks.scaling [--store FILE]``: what training costs on many GPUs, on paper, as Markdown tables.

A model, not a measurement: operations are counted in the networks themselves and divided by an assumed speed of
a card (``--tflops``). With the output of ``benchmarks.margin_store`` in FILE, the store is extrapolated too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ima_dist.attacks import bpgd
from ima_dist.config.presets import make_config
from ima_dist.config.references import resolve_reference
from ima_dist.config.schema import Config
from ima_dist.margins.store import REPLICATE_UP_TO
from ima_dist.training.network import make_optimizer

# Samples, classes and shape of what the presets train on (paper, section 3).
_DATA = {
    "fashion_mnist": (54_000, 10, (1, 28, 28)),
    "svhn": (65_931, 10, (3, 32, 32)),
    "covid_ct": (2_022, 2, (1, 224, 224)),
    "cifar10": (45_000, 10, (3, 32, 32)),
}
_HALVING = 6  # operators of a halving besides its pass
_CROSSED = 0.4  # share of the samples that reach the boundary and are bisected


@dataclass(frozen=True)
class Network:
    """parameters: their number. flops: floating-point operations of a forward pass, a sample."""

    parameters: int
    flops: float


def count(preset: str) -> Network:
    """Parameters and operations of a preset's network, counted while it runs on one sample."""
    _, classes, shape = _DATA[preset]
    factory = resolve_reference(make_config(preset).model.factory, "model.factory")
    network = factory(classes, shape).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape))
    return Network(sum(p.numel() for p in network.parameters()), float(counter.get_total_flops()))


def passes(config: Config, crossed: float = _CROSSED) -> tuple[float, float]:
    """Cost of IMA for a sample and epoch, in forward passes: in its training step, and in the margin pass.

    Nothing is saved by compaction. A step of PGD is a forward pass and the gradient of the input, which costs as
    much again; a bisection is a forward pass; the update costs a forward pass and two for the gradients of
    inputs and parameters, for the clean sample and, if it crossed, for the noisy one.
    """
    attack = 2 * config.attack.steps + 1 + crossed * config.attack.bisections
    return attack + 3 * (1 + crossed), attack if config.margin_update == "epoch" else 0.0


def epoch_table(workers: Sequence[int], batch: int, tflops: float) -> Iterable[list[str]]:
    """A row for each preset and number of GPUs; each GPU has ``batch`` samples of every global batch."""
    yield [
        "network",
        "parameters",
        "GFLOP a pass",
        "GPUs",
        "seconds a step",
        "seconds an epoch of 10⁶ samples",
        "gradient, MB a step",
        "GB/s needed",
    ]
    for preset in _DATA:
        network, config = count(preset), make_config(preset)
        step, margins = (n * network.flops / (tflops * 1e12) for n in passes(config))
        for number in workers:
            sent = 2 * (number - 1) / number * 4 * network.parameters  # a ring's share, float32
            yield [
                preset,
                f"{network.parameters:,}",
                f"{network.flops / 1e9:.3f}",
                str(number),
                f"{batch * step:.3g}",
                f"{1e6 / number * (step + margins):.3g}",
                f"{sent / 1e6:.1f}",
                # It may cost a tenth of the step's time at most.
                f"{sent / (0.1 * batch * step) / 1e9:.2g}",
            ]


def operators(preset: str) -> int:
    """Operators that IMA (online) hands to the device in a training step: on a card, about one kernel each."""
    _, classes, shape = _DATA[preset]
    config = make_config(preset, {"margin_update": "online"})
    network = resolve_reference(config.model.factory, "model.factory")(classes, shape)
    optimizer = make_optimizer(config, network)
    x = torch.rand(4, *shape)
    with _Operators() as forward, torch.no_grad():
        y = network(x).argmax(1)
    # So near to the samples none crosses, and all steps are taken. The halvings of those that cross come on top.
    settings: dict[str, Any] = {"norm": config.norm, "steps": config.attack.steps, "box": (0.0, 1.0)}
    with _Operators() as counted:
        found = bpgd(network, x, y, 1e-6, **settings)
        F.cross_entropy(network(torch.cat([x, found.x])), y.repeat(2)).backward()
        optimizer.step()
    return counted.total + config.attack.bisections * (forward.total + _HALVING)


class _Operators(TorchDispatchMode):
    """Counts operators, without those that only make a view."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        return func(*args, **(kwargs or {}))


def batch_table(tflops: float, launch: float) -> Iterable[list[str]]:
    """How many samples of a batch a card needs before its arithmetic takes as long as launching its kernels.

    launch: seconds of the host for an operator.
    """
    yield ["network", "operators a step", "launching, ms", "arithmetic of a sample, µs", "as long at, samples", "at 16"]
    for preset in _DATA:
        step, _ = passes(make_config(preset, {"margin_update": "online"}))
        sample, number = step * count(preset).flops / (tflops * 1e12), operators(preset)
        yield [
            preset,
            f"{number:,}",
            f"{1e3 * number * launch:.1f}",
            f"{1e6 * sample:.3g}",
            f"{number * launch / sample:.0f}",
            f"{min(1.0, 16 * sample / (number * launch)):.2f}",
        ]


def store_table(measured: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> Iterable[list[str]]:
    """The store for (samples, workers), from a measurement with fewer of both, in proportion to the shards."""
    yield ["samples", "workers", "copy", "memory a worker", "reduce", "save", "on disk", "sent a worker and epoch"]
    own, scattered, load = measured["own"], measured["scattered"], measured["load_on_one_worker"]
    held = measured["samples"] / measured["workers"]
    for samples, workers in sizes:
        scale = samples / workers / held
        # All but 1/W of what is looked up and proposed at random belongs to others.
        away = (1 - 1 / workers) / (1 - 1 / measured["workers"])
        copied = samples <= REPLICATE_UP_TO
        yield [
            f"{samples:,}",
            str(workers),
            "on each worker" if copied else "none",
            _bytes(own["peak_memory_of_a_worker"] * scale),
            f"{own['reduce'] * scale:.2g} s",
            f"{own['save'] * scale:.2g} s",
            _bytes(load["bytes_on_disk"] / measured["samples"] * samples),
            _bytes(4 * samples if copied else scattered["bytes_sent_by_a_worker"] * scale * away),
        ]


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def markdown(rows: Iterable[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, metavar="FILE", help="what benchmarks.margin_store has printed")
    parser.add_argument("--batch", type=int, default=128, help="samples of a GPU in a global batch")
    parser.add_argument(
        "--tflops", type=float, default=6.0, help="sustained speed of a card, in 10¹² operations a second"
    )
    parser.add_argument("--launch", type=float, default=6.0, help="microseconds that the host takes for an operator")
    arguments = parser.parse_args()
    print(markdown(epoch_table((8, 64, 512), arguments.batch, arguments.tflops)))
    print("\n" + markdown(batch_table(arguments.tflops, 1e-6 * arguments.launch)))
    if arguments.store:
        sizes = [(10**8, 2), (10**9, 64), (10**9, 512), (10**10, 64), (10**10, 512)]
        print("\n" + markdown(store_table(json.loads(arguments.store.read_text()), sizes)))


if __name__ == "__main__":
    main()

"""How much of a training step is spent outside the network's forward and backward passes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import clock
from ima_dist.config.presets import make_config
from ima_dist.data.load import load
from ima_dist.data.order import batches
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training


class _Clock:
    """Seconds inside the outermost timed call."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.depth:
                return function(*args, **kwargs)
            self.depth += 1
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += clock() - began
                self.depth -= 1

        return call


@contextmanager
def _timing_passes(network: torch.nn.Module, clock: _Clock) -> Iterator[None]:
    grad, backward = torch.autograd.grad, torch.Tensor.backward
    torch.autograd.grad = clock.timed(grad)
    torch.Tensor.backward = clock.timed(backward)  # type: ignore[method-assign]
    network.forward = clock.timed(network.forward)
    try:
        yield
    finally:
        torch.autograd.grad, torch.Tensor.backward = grad, backward  # type: ignore[method-assign]
        del network.forward


def outside_share(preset: str, options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Share of the time of ``steps`` IMA training steps, after as many for warming up, on one CPU worker.

    A forward pass is a call of the network; a backward pass a call of autograd. Losses, projections, keyed
    noise, picking samples, margins and the optimiser are outside.
    """
    config = make_config(preset, options)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(config, Path(folder) / "run")
        training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
        order = list(batches(len(training.train), config.batch_size, config.seed, 0))
        for batch in order[:steps]:
            training._step(batch)
        inside = _Clock()
        with _timing_passes(training.network, inside):
            began = clock()
            for batch in order[steps : 2 * steps]:
                training._step(batch)
            total = clock() - began
    return {
        "preset": preset,
        "batch_size": config.batch_size,
        "steps": steps,
        "milliseconds_per_step": 1000 * total / steps,
        "outside_share": 1 - inside.seconds / total,
    }


#: preset -> options with a margin large enough that a part of the samples crosses, and steps
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "moons": ({"delta_eps": 0.1}, 60),
    "fashion_mnist": ({"delta_eps": 0.05, "data.subset": 4000}, 6),
}
_SMALL: dict[str, Any] = {"data.subset": 40, "batch_size": 10}


def measure(quick: bool, report: Callable[[dict[str, Any]], None]) -> None:
    """Report a row for each network."""
    for preset, (options, steps) in CASES.items():
        report(outside_share(preset, {**options, **(_SMALL if quick else {})}, 2 if quick else steps))

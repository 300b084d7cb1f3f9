"""Whole IMA trainings (online) against a plain loop and the authors' released loss: same network, data and settings.

Ours is ``Training.fit``, with validation and checkpoints: with the exact attack, with the recipe ``fast`` and, where
launching decides, with --compile (compiling itself is left out). Theirs only trains. All run one after the other,
several times, and a ratio is of neighbours. ``allowed`` is the ratio of the two trainings' bare passes: the passes that
each has made, of the same sizes, with nothing between them. ``share_of_limit`` is the time of our bare passes by that
of our training, and ``share_of_product_peak`` the arithmetic of our passes per second by that of a large matrix product
on this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import plain, released, timing
from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.data.load import load
from ima_dist.data.order import batches
from ima_dist.data.types import DataSet
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training

#: preset -> size -> options
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "moons": {
        "full": {},
        "short": {"data.subset": 8000, "epochs": 4},
        "quick": {"data.subset": 256, "epochs": 1},
    },
    "fashion_mnist": {
        "full": {"data.subset": 2000, "epochs": 8},
        "short": {"data.subset": 384, "epochs": 3},
        "quick": {"data.subset": 20, "batch_size": 10, "epochs": 1},
    },
}
#: What of ours is measured: its options beside those of the preset.
_OURS: dict[str, dict[str, Any]] = {"": {}, "recipe fast": {"recipe": "fast"}, "--compile": {"compile": True}}
#: Trains a network that has not been trained.
Runner = Callable[[Training], object]


def prepared(config: Config, data: DataSet, folder: str) -> Training:
    """A training that has not begun, in a new run directory below ``folder``."""
    return Training(
        config, RunDir.create(config, Path(tempfile.mkdtemp(dir=folder)) / "run"), data, torch.device("cpu")
    )


def measure(authors: Path | None, size: str, pairs: int, report: Callable[[dict[str, Any]], None]) -> None:
    """Report a row for each preset, variant of ours and reference."""
    peak = timing.product_peak()
    references: dict[str, Runner] = {"plain loop": lambda training: plain.train(training, plain.ima(training))}
    if authors is not None:
        module = released.released(authors)
        references["authors' loss"] = lambda training: plain.train(training, released.ima(training, module))
    for preset, sizes in CASES.items():
        ours = [name for name in _OURS if name != "--compile" or preset == "moons"]
        with torch.compiler.set_stance("force_eager" if size == "quick" else "default"):
            for row in _compare(preset, sizes[size], ours, references, pairs, peak):
                report({"preset": preset, **row})


def _compare(
    preset: str,
    options: dict[str, Any],
    ours: Sequence[str],
    references: dict[str, Runner],
    pairs: int,
    peak: float,
) -> list[dict[str, Any]]:
    options = {"margin_update": "online", **options}
    exact = make_config(preset, options)
    configs = {name: make_config(preset, {**options, **_OURS[name]}) for name in ours}
    # The references have the preset's own attack.
    runs: dict[str, tuple[Config, Runner]] = {name: (exact, run) for name, run in references.items()}
    runs |= {name: (config, Training.fit) for name, config in configs.items()}
    data = load(exact.data, exact.seed)
    times: dict[str, list[float]] = {name: [] for name in runs}
    passes: dict[str, list[timing.Pass]] = {}
    with tempfile.TemporaryDirectory() as folder:
        network, shape = prepared(exact, data, folder).network, data.train.shape
        bare = timing.Bare(network, shape, 2 * exact.batch_size)
        for _ in range(pairs):
            bare.time(repeats=5)
            for name, (config, run) in runs.items():
                if config.compile:
                    _compile(config, data, folder)
                training = prepared(config, data, folder)
                # Recording would be compiled, too. The passes are those of the exact attack.
                with nullcontext(passes[""]) if config.compile else timing.recorded(training.network) as passes[name]:
                    times[name].append(timing.seconds(lambda training=training, run=run: run(training)))  # type: ignore[misc]
        bare.time(repeats=5)
    rows = []
    for variant in ours:
        for reference in references:
            found = timing.summary(list(zip(times[reference], times[variant], strict=True)))
            limit = bare.total(passes[variant])
            allowed = bare.total(passes[reference]) / limit
            per_second = timing.operations(network, passes[variant], shape) / found.second
            rows.append(
                {
                    "samples": len(data.train),
                    "epochs": exact.epochs,
                    "ours": variant,
                    "reference": reference,
                    "theirs_over_ours": found.rounded(),
                    "allowed": round(allowed, 3),
                    "of_allowed": round(found.ratio / allowed, 3),
                    "share_of_limit": round(limit / found.second, 3),
                    "share_of_product_peak": round(per_second / peak, 3),
                    "passes": {"theirs": timing.counts(passes[reference]), "ours": timing.counts(passes[variant])},
                }
            )
    return rows


def _compile(config: Config, data: DataSet, folder: str) -> None:
    """One step, after which torch has what it needs for any network of this kind."""
    training = prepared(config, data, folder)
    training.begin()
    training._step(next(batches(len(data.train), config.batch_size, config.seed, 0)))

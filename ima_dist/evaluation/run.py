"""Evaluate one network with the configured attacks; every worker takes a block of the test samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from ima_dist import distributed, noise
from ima_dist.attacks import worst
from ima_dist.attacks.common import attack_mode
from ima_dist.config import Config
from ima_dist.data.dataset import Resident
from ima_dist.evaluation.advertorch_pgd import advertorch_pgd
from ima_dist.results.rundir import RunDir, read_parquet, write_json, write_parquet

# (loss, noise) -> predictions (B,)
Predictions = dict[tuple[str, float], Tensor]
# noise level -> ξ (B, ...)
Start = Callable[[float], Tensor]


def evaluate(
    network: nn.Module,
    test: Resident,
    config: Config,
    box: tuple[float, float] | None,
    *,
    batch_size: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[dict[str, Any]], pa.Table]:
    """Attack the test samples (the first ``eval.samples`` of them) at every noise level.

    All workers call it together; all get the result.

    Args:
        batch_size: samples attacked at once.
        on_progress: told (attacks begun, attacks in all) of this worker, one for each batch and level, and for
            pgd100 also for each loss.

    Returns:
        curves: one dictionary for each attack, loss and noise level (see the design of summary.json).
        outcomes: a row for each sample, attack, loss and noise level.
    """
    total = len(test) if config.eval.samples is None else min(config.eval.samples, len(test))
    first, last = distributed.block(total, distributed.rank(), distributed.world_size())
    parts = torch.arange(first, last, device=test.x.device).split(batch_size) if last > first else ()
    pieces: list[tuple[str, str, float, np.ndarray, np.ndarray, np.ndarray]] = []
    begun, levels = 0, sum(level > 0 for level in config.eval.noise)
    rounds = len(parts) * levels * sum(_RUNS_PER_LEVEL[attack] for attack in config.eval.attacks)
    on_progress(0, rounds)

    def starts(x: Tensor, indices: Tensor, eps: float) -> Tensor:
        nonlocal begun
        begun += 1
        on_progress(begun, rounds)
        return noise.start(noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, indices), x, eps, config.norm)

    for part in parts:
        x, y = test.batch(part)
        for attack in config.eval.attacks:
            found = _ATTACKS[attack](network, x, y, functools.partial(starts, x, part), config, box)
            for (loss, level), predicted in found.items():
                pieces.append((attack, loss, level, part.cpu().numpy(), y.cpu().numpy(), predicted.cpu().numpy()))
    everything = [piece for worker in distributed.gather_objects(pieces) for piece in worker]
    outcomes = _outcomes(everything, config)
    return _curves(outcomes, config), outcomes


def save(run: RunDir, curves: list[dict[str, Any]], outcomes: pa.Table, summary: dict[str, Any]) -> None:
    """Put the figures of one evaluation beside those of attacks evaluated earlier; one worker calls it."""
    attacks = {(c["attack"], c["epoch"]) for c in curves}
    kept = [c for c in run.summary().get("curves", []) if (c["attack"], c["epoch"]) not in attacks]
    if run.outcomes_path.exists():
        old = read_parquet(run.outcomes_path)
        keys = zip(old["attack"].to_pylist(), old["epoch"].to_pylist(), strict=True)
        outcomes = pa.concat_tables([old.filter(pa.array([key not in attacks for key in keys])), outcomes])
    write_parquet(run.outcomes_path, outcomes)
    write_json(run.summary_path, {**run.summary(), **summary, "curves": kept + curves})


def _worse(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """The prediction of whichever attack broke the sample."""
    return torch.where(a != y, a, b)


def _pgd100(
    network: nn.Module, x: Tensor, y: Tensor, start: Start, config: Config, box: tuple[float, float] | None
) -> Predictions:
    """The paper's protocol: final iterate, each level alone, both losses, the worse of the two (section 3)."""
    out: Predictions = {}
    with attack_mode(network), torch.no_grad():
        clean = network(x).argmax(1)
        for eps in config.eval.noise:
            for loss in ("ce", "margin"):
                if eps == 0:
                    out[loss, eps] = clean
                    continue
                adv = advertorch_pgd(
                    network,
                    x,
                    y,
                    eps,
                    norm=config.norm,
                    steps=config.eval.steps,
                    step_scale=config.eval.step_scale,
                    loss=loss,
                    start=start(eps),
                    box=box,
                )
                out[loss, eps] = network(adv).argmax(1)
            out["both", eps] = _worse(out["ce", eps], out["margin", eps], y)
    return out


def _worst(
    network: nn.Module, x: Tensor, y: Tensor, start: Start, config: Config, box: tuple[float, float] | None
) -> Predictions:
    predictions, _ = worst(
        network,
        x,
        y,
        config.eval.noise,
        norm=config.norm,
        steps=config.eval.steps,
        step_scale=config.eval.step_scale,
        start=start,
        box=box,
    )
    return {("both", eps): predictions[i] for i, eps in enumerate(config.eval.noise)}


_ATTACKS: dict[str, Callable[..., Predictions]] = {"pgd100": _pgd100, "worst": _worst}
_RUNS_PER_LEVEL = {"pgd100": 2, "worst": 1}


def _outcomes(pieces: list[tuple[str, str, float, np.ndarray, np.ndarray, np.ndarray]], config: Config) -> pa.Table:
    sizes = [len(piece[3]) for piece in pieces]

    def repeated(values: list[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(np.repeat(np.array(values, dtype=object), sizes), type=kind)

    def joined(number: int) -> pa.Array:
        arrays = [np.asarray(piece[number], dtype=np.int64) for piece in pieces]
        return pa.array(np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64))

    table = pa.table(
        {
            "index": joined(3),
            "attack": repeated([p[0] for p in pieces], pa.string()),
            "loss": repeated([p[1] for p in pieces], pa.string()),
            "norm": repeated([config.norm] * len(pieces), pa.string()),
            "noise": repeated([p[2] for p in pieces], pa.float64()),
            "epoch": repeated([config.epochs] * len(pieces), pa.int64()),
            "label": joined(4),
            "prediction": joined(5),
        }
    )
    return table.sort_by([(name, "ascending") for name in ("attack", "loss", "noise", "index")])


def _curves(outcomes: pa.Table, config: Config) -> list[dict[str, Any]]:
    right = pa.array(outcomes["label"].to_numpy() == outcomes["prediction"].to_numpy())
    grouped = (
        outcomes.append_column("right", right)
        .group_by(["attack", "loss", "noise"], use_threads=False)
        .aggregate([("right", "mean"), ("right", "count")])
    )
    return [
        {
            "attack": row["attack"],
            "loss": row["loss"],
            "norm": config.norm,
            "noise": row["noise"],
            "split": "test",
            "accuracy": row["right_mean"],
            "samples": row["right_count"],
            "steps": config.eval.steps,
            "step_scale": config.eval.step_scale,
            "epoch": config.epochs,
        }
        for row in grouped.to_pylist()
    ]

"""What a worker is asked to do: train (and then evaluate), or evaluate. Every worker calls these together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ima_dist.attacks.common import attack_mode
from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.data.batch_sizes import evaluation_batch_size
from ima_dist.data.load import load
from ima_dist.data.types import DataSet, Resident
from ima_dist.evaluation import outcomes
from ima_dist.evaluation import runner as evaluation
from ima_dist.evaluation.boundary import boundary_grid
from ima_dist.evaluation.extremes import extremes
from ima_dist.evaluation.margin_audit import audit
from ima_dist.evaluation.noisy_images import noisy_images
from ima_dist.evaluation.scores import scores_table
from ima_dist.results import paper
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import replacing, write_json, write_parquet
from ima_dist.training.checkpoint import load_weights
from ima_dist.training.loop import Training
from ima_dist.training.network import DTYPES, limit_threads, make_network
from ima_dist.worker.watchdog import watched


def train_task(config: Config, run: RunDir, device: torch.device, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Train from wherever the run is to its end, evaluate, draw. Returns {"status", "message"}."""
    began = time.perf_counter()
    data = load(config.data, config.seed)
    limit_threads(data)
    if distributed.rank() == 0:
        _write_names(run, data)
    training = Training(config, run, data, device, should_stop)
    with watched(run, training.network, config.hang_after):
        network = training.fit()
    seconds = {"train": time.perf_counter() - began}
    if distributed.rank() == 0:
        _write_boundary(run, network, training.train)
    trained = sum(row["train_seconds"] + (row["margin_seconds"] or 0.0) for row in training.history)
    speed = len(training.train) * len(training.history) / max(trained, 1e-9)
    _evaluate(config, run, device, data, network, config.epochs, should_stop, seconds)
    answer = {"status": "finished", "message": None}
    if distributed.rank() == 0:
        write_json(run.summary_path, {**run.summary(), **answer, "train_samples_per_second": speed})
    return answer


def evaluate_task(
    config: Config, run: RunDir, device: torch.device, should_stop: Callable[[], bool], epochs: list[int]
) -> dict[str, Any]:
    """Evaluate a run's networks after ``epochs`` with ``config.eval``. Returns {"status", "message"}."""
    data = load(config.data, config.seed)
    limit_threads(data)
    network = make_network(config, data).to(device)
    for epoch in epochs:
        load_weights(run, epoch, data.digest(), network)
        _evaluate(config, run, device, data, network, epoch, should_stop, {})
    return {"status": "finished", "message": None}


def audit_task(
    config: Config, run: RunDir, device: torch.device, should_stop: Callable[[], bool], samples: int
) -> dict[str, Any]:
    """Compare the newest stored margins with an independent attack; see ``evaluation.audit``."""
    newest = run.newest_margins()
    assert newest is not None, "the entry point has looked"
    epoch, margins = newest
    data = load(config.data, config.seed)
    limit_threads(data)
    network = make_network(config, data).to(device)
    load_weights(run, epoch, data.digest(), network)
    train = Resident(data.train, device, DTYPES[config.dtype], data.box)
    lead = distributed.rank() == 0

    def on_progress(done: int, total: int) -> None:
        if lead:
            progress = {"stage": "evaluation", "evaluation_done": done, "evaluation_total": total}
            write_json(run.progress_path, {**progress, "epoch": epoch, "epochs": config.epochs})

    found = audit(
        network,
        train,
        margins.sort_by("index"),
        config,
        epoch=epoch,
        samples=samples,
        augmented=data.augment,
        batch_size=evaluation_batch_size(config.batch_size, train),
        should_stop=should_stop,
        on_progress=on_progress,
    )
    if lead:
        write_parquet(run.audit_path, found.append_column("epoch", pa.array([epoch] * found.num_rows)))
        write_json(run.progress_path, {"stage": "done", "epoch": epoch, "epochs": config.epochs})
    return {"status": "finished", "message": None}


def _evaluate(
    config: Config,
    run: RunDir,
    device: torch.device,
    data: DataSet,
    network: nn.Module,
    epoch: int,
    should_stop: Callable[[], bool],
    seconds: dict[str, float],
) -> None:
    began, seconds = time.perf_counter(), dict(seconds)
    lead = distributed.rank() == 0
    test = Resident(data.test, device, DTYPES[config.dtype], data.box)

    def on_progress(done: int, total: int) -> None:
        if lead:
            progress = {"stage": "evaluation", "evaluation_done": done, "evaluation_total": total}
            write_json(run.progress_path, {**progress, "epoch": epoch, "epochs": config.epochs})

    with watched(run, network, config.hang_after):
        found = evaluation.evaluate(
            network,
            test,
            config,
            run,
            epoch=epoch,
            digest=data.digest(),
            batch_size=evaluation_batch_size(config.batch_size, test),
            should_stop=should_stop,
            on_progress=on_progress,
        )
    if lead:
        if epoch == config.epochs and len(test.shape) == 3:
            _write_noisy_images(run, network, test, config, data, should_stop)
        if epoch == config.epochs:
            _write_extremes(run, Resident(data.train, "cpu", DTYPES[config.dtype], data.box), data.class_names)
        seconds["evaluate"] = time.perf_counter() - began
        row = paper.row_of(config)
        summary = {
            "preset": config.preset,
            "method": config.method,
            "norm": config.norm,
            "seed": config.seed,
            "paper_table": row[0] if row else None,
            "parameters": sum(p.numel() for p in network.parameters()),
            "test_samples": len(test),
            "seconds": {**run.summary().get("seconds", {}), **seconds},
        }
        if epoch == config.epochs:
            summary["clean_accuracy"] = _clean_accuracy(network, test, device)
            if data.num_classes == 2 and data.class_names:
                summary["class_names"] = list(data.class_names)
                val = Resident(data.val, device, DTYPES[config.dtype], data.box)
                write_parquet(run.scores_path, scores_table(network, {"validation": val, "test": test}))
        outcomes.save(run, found, config, summary)
        evaluation.forget(run, config, epoch, data.digest())
        write_json(run.progress_path, {"stage": "done", "epoch": epoch, "epochs": config.epochs})


def _clean_accuracy(network: nn.Module, test: Resident, device: torch.device) -> float:
    """Share of the whole test set that is classified correctly, attacked or not."""
    right = 0
    with torch.no_grad(), attack_mode(network):
        for part in torch.arange(len(test), device=device).split(1024):
            x, y = test.batch(part)
            right += int((network(x).argmax(1) == y).sum())
    return right / len(test)


def _write_names(run: RunDir, data: DataSet) -> None:
    """Which file went into which part, where samples have names: index is the place in that part."""
    splits = {"training": data.train, "validation": data.val, "test": data.test}
    pieces = [
        pa.table(
            {
                "split": pa.repeat(name, len(split)),
                "index": np.arange(len(split)),
                "name": list(split.names),
                "label": split.y.numpy(),
            }
        )
        for name, split in splits.items()
        if split.names is not None
    ]
    if pieces:
        write_parquet(run.samples_path, pa.concat_tables(pieces))


def _write_noisy_images(
    run: RunDir,
    network: nn.Module,
    test: Resident,
    config: Config,
    data: DataSet,
    should_stop: Callable[[], bool],
) -> None:
    try:
        with evaluation.stoppable(network, should_stop):
            arrays: dict[str, Any] = noisy_images(network, test, config, data.class_names)
    except evaluation.Stop:
        raise distributed.Interrupted("stopped during the evaluation") from None
    with replacing(run.examples_dir / "noisy.npz") as file:
        np.savez_compressed(file, **arrays)


def _write_extremes(run: RunDir, train: Resident, class_names: tuple[str, ...] | None) -> None:
    newest = run.newest_margins()
    if newest is None or not newest[1].num_rows:
        return
    with replacing(run.examples_dir / "extremes.npz") as file:
        arrays: dict[str, Any] = extremes(train, newest[1], class_names)
        np.savez_compressed(file, **arrays)


def _write_boundary(run: RunDir, network: nn.Module, train: Resident) -> None:
    if train.shape != (2,):
        return
    x, y = train.batch(torch.arange(len(train)))
    run.examples_dir.mkdir(exist_ok=True)
    np.savez_compressed(run.examples_dir / "boundary.npz", **boundary_grid(network, x, y))  # type: ignore[arg-type]

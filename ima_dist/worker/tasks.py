"""The tasks of a worker: train (and then evaluate), evaluate, audit. All workers call one together."""

import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from ima_dist.attacks.common import attack_mode
from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.data.batch_sizes import evaluation_batch_size
from ima_dist.data.load import load
from ima_dist.data.types import DataSet, Resident, Split
from ima_dist.evaluation import artefacts, outcomes
from ima_dist.evaluation.margin_audit import audit
from ima_dist.evaluation.runner import evaluate, forget
from ima_dist.results import paper
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_parquet
from ima_dist.training.checkpoint import load_weights
from ima_dist.training.loop import Training
from ima_dist.training.network import DTYPES, limit_threads, make_network
from ima_dist.worker.watchdog import watched

_FINISHED = {"status": "finished", "message": None}


def train_task(config: Config, run: RunDir, device: torch.device, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Train from wherever the run is to its end, evaluate, draw. Returns {"status", "message"}."""
    began = time.perf_counter()
    data = load(config.data, config.seed)
    limit_threads(data)
    if distributed.rank() == 0:
        artefacts.write_names(run, data)
    training = Training(config, run, data, device, should_stop)
    with watched(run, training.network, config.hang_after):
        network = training.fit()
    seconds = {"train": time.perf_counter() - began}
    if distributed.rank() == 0:
        artefacts.write_boundary(run, network, training.train)
    trained = sum(row["train_seconds"] + (row["margin_seconds"] or 0.0) for row in training.history)
    speed = len(training.train) * len(training.history) / max(trained, 1e-9)
    _evaluate(config, run, device, data, network, config.epochs, should_stop, seconds)
    if distributed.rank() == 0:
        write_json(run.summary_path, {**run.summary(), **_FINISHED, "train_samples_per_second": speed})
    return dict(_FINISHED)


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
    return dict(_FINISHED)


def audit_task(
    config: Config, run: RunDir, device: torch.device, should_stop: Callable[[], bool], samples: int
) -> dict[str, Any]:
    """Compare the newest stored margins with an independent attack; see ``evaluation.margin_audit``."""
    newest = run.newest_margins()
    assert newest is not None, "the command has checked"
    epoch, margins = newest
    data = load(config.data, config.seed)
    limit_threads(data)
    network = make_network(config, data).to(device)
    load_weights(run, epoch, data.digest(), network)
    train = _resident(data.train, data, config, device)
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
        on_progress=_evaluation_progress(run, config, epoch),
    )
    if distributed.rank() == 0:
        write_parquet(run.audit_path, found.append_column("epoch", pa.array([epoch] * found.num_rows)))
        write_json(run.progress_path, {"stage": "done", "epoch": epoch, "epochs": config.epochs})
    return dict(_FINISHED)


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
    """Attack the network after ``epoch`` epochs; worker 0 records what was found, and ``seconds`` spent before."""
    began = time.perf_counter()
    test = _resident(data.test, data, config, device)
    with watched(run, network, config.hang_after):
        found = evaluate(
            network,
            test,
            config,
            run,
            epoch=epoch,
            digest=data.digest(),
            batch_size=evaluation_batch_size(config.batch_size, test),
            should_stop=should_stop,
            on_progress=_evaluation_progress(run, config, epoch),
        )
    if distributed.rank() != 0:
        return
    of_whole_training: dict[str, Any] = {}
    if epoch == config.epochs:
        artefacts.write_noisy_images(run, network, test, config, data, should_stop)
        artefacts.write_extremes(run, _resident(data.train, data, config, torch.device("cpu")), data)
        of_whole_training = _clean_results(run, network, test, config, data, device)
    seconds = {**run.summary().get("seconds", {}), **seconds, "evaluate": time.perf_counter() - began}
    outcomes.save(
        run, found, config, {**_description(config, network, test, data), "seconds": seconds, **of_whole_training}
    )
    forget(run, config, epoch, data.digest())
    write_json(run.progress_path, {"stage": "done", "epoch": epoch, "epochs": config.epochs})


def _description(config: Config, network: nn.Module, test: Resident, data: DataSet) -> dict[str, Any]:
    """What summary.json says of a run besides its results."""
    row = paper.row_of(config)
    return {
        "preset": config.preset,
        "method": config.method,
        "norm": config.norm,
        "seed": config.seed,
        "paper_table": row[0] if row else None,
        "parameters": sum(p.numel() for p in network.parameters()),
        "test_samples": len(test),
        "data_digest": data.digest(),
    }


def _clean_results(
    run: RunDir, network: nn.Module, test: Resident, config: Config, data: DataSet, device: torch.device
) -> dict[str, Any]:
    """What summary.json says of the finished network on clean samples; with two classes also scores.parquet."""
    found: dict[str, Any] = {"clean_accuracy": _clean_accuracy(network, test, device)}
    if data.num_classes == 2 and data.class_names:
        found["class_names"] = list(data.class_names)
        val = _resident(data.val, data, config, device)
        write_parquet(run.scores_path, artefacts.scores_table(network, {"validation": val, "test": test}))
    return found


def _clean_accuracy(network: nn.Module, test: Resident, device: torch.device) -> float:
    """Share of the whole test set that is classified correctly, whether attacked or not."""
    right = 0
    with torch.no_grad(), attack_mode(network):
        for part in torch.arange(len(test), device=device).split(1024):
            x, y = test.batch(part)
            right += int((network(x).argmax(1) == y).sum())
    return right / len(test)


def _evaluation_progress(run: RunDir, config: Config, epoch: int) -> Callable[[int, int], None]:
    """Writes progress.json during an evaluation (worker 0)."""

    def write(done: int, total: int) -> None:
        if distributed.rank() == 0:
            progress = {"stage": "evaluation", "evaluation_done": done, "evaluation_total": total}
            write_json(run.progress_path, {**progress, "epoch": epoch, "epochs": config.epochs})

    return write


def _resident(split: Split, data: DataSet, config: Config, device: torch.device) -> Resident:
    return Resident(split, device, DTYPES[config.dtype], data.box)

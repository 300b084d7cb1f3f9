"""Shared by the commands that train or evaluate: checks before a run, the run itself, its results afterwards."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ima_dist.cli import external
from ima_dist.cli.entry import AGAIN, as_part, describe_os_error, results_root, say, say_interrupted, shown
from ima_dist.cli.progress import ProgressView
from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, ConfigError, complain
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.launch.cluster import Cluster
from ima_dist.launch.local import prepare_process, run_here, workers_of
from ima_dist.launch.workers import run_workers
from ima_dist.plans.pending import next_command
from ima_dist.results.doubts import door_doubts, doubts, failed_attacks, range_text, remarks
from ima_dist.rundir.directory import RunDir
from ima_dist.tracking.recorder import Recorder

if TYPE_CHECKING:
    from torch import nn

    from ima_dist.data.types import DataSet
    from ima_dist.rundir.curves import Point
    from ima_dist.rundir.run import Run


def add_local(parser: argparse.ArgumentParser) -> None:
    """Add ``--local``; see ``launch.local``."""
    text = "run in this process, as one worker, without Ray: it starts within seconds, and the result is the same"
    parser.add_argument("--local", action="store_true", help=text)


def check_local(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Raise ConfigError for ``--local`` with several workers; a run that began with several may go on with one."""
    if arguments.local and options.get("workers") not in (None, 1):
        raise ConfigError(
            f"--workers {options['workers']} needs Ray: leave out --local, which is one worker in this process."
        )


class Inputs(NamedTuple):
    """digest: of the data. findings: what ``training.door.check_door`` found, for summary.json."""

    digest: str
    findings: dict[str, Any]


def check_inputs(
    config: Config, run: RunDir | None = None, epochs: Sequence[int] = (), data: DataSet | None = None
) -> Inputs:
    """Load the data and try the network on a few samples, before anything is written.

    Of a ``run`` that exists, also check that this is still its network, and that its weights after ``epochs`` can be
    used. ``data``: those of the configuration, if they have been loaded. Raises ConfigError.
    """
    from ima_dist.cli.same_network import check_network
    from ima_dist.data.equal_samples import equal_samples

    data, network, findings = tried(config, run, data)
    # Published parts stay as they are.
    equal = None if data.split_level is None else equal_samples(data)
    findings |= {} if equal is None else {"equal_samples": equal}
    if run is not None:
        check_network(run, config, data, network, epochs)
    return Inputs(data.digest(), findings)


def tried(
    config: Config, run: RunDir | None = None, data: DataSet | None = None
) -> tuple[DataSet, nn.Module, dict[str, Any]]:
    """The data, and the network, tried on a few samples, with what was found. Raises ConfigError."""
    import torch

    from ima_dist.classifier.loading import kept_copy
    from ima_dist.data.augment import check_augmentation
    from ima_dist.data.load import load
    from ima_dist.training.average import averaged
    from ima_dist.training.class_weights import class_weights
    from ima_dist.training.door import check_door
    from ima_dist.training.network import DTYPES, few_threads, make_network

    prepare_process()
    see_users_modules()
    if config.device == "cuda" and not os.environ.get("RAY_ADDRESS") and not torch.cuda.is_available():
        raise ConfigError("--device cuda was given, but torch finds no CUDA device: use --device cpu or auto.")
    try:
        data = data or load(config.data, config.seed)
        network = make_network(config, data, run)
        class_weights(config, data)
        if config.patience is not None and not len(data.val):
            raise ConfigError("--patience needs validation samples, and these data have none: leave it out.")
        if config.ema:
            averaged(network, config.ema)
        if config.data.augment is not None:
            check_augmentation(config.data.augment, data, DTYPES[config.dtype])
    except ConfigError as error:
        if run is not None and isinstance(error.__cause__, ModuleNotFoundError):
            raise ConfigError(f"{str(error).rstrip('.')}{kept_copy(run.code_dir)}.") from error
        raise
    with few_threads(data):
        return data, network, check_door(network, data, config, run)


def say_findings(config: Config, findings: dict[str, Any]) -> None:
    """Print the range of the inputs and ε's share of it, and warn of what is doubtful."""
    name = "noise" if config.method == EXTERNAL else "ε_max"
    say(range_text(findings["inputs"], config.eps_max, config.norm, name))
    for doubt in door_doubts(findings, [config.eps_max, *config.eval.noise], config.norm):
        complain(f"warning: {doubt}")


def see_users_modules() -> None:
    """Let modules in the current directory be imported, as those in PYTHONPATH."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def check_checkpoints(run: RunDir, config: Config, data: str) -> None:
    """Print where a run continues, and warn of newer checkpoints that are damaged.

    Raises ConfigError if the run has checkpoints, but none from which it can continue on the data with this digest.
    """
    from ima_dist.training import checkpoint

    try:
        found, complaints = checkpoint.newest(run, checkpoint.Identity(config.fingerprint(), data))
    except checkpoint.Damaged as error:
        raise ConfigError(f"{error}.") from error
    for complaint in complaints:
        complain(f"warning: {complaint}; falling back to the checkpoint before it.")
    if found is not None:
        step = f", step {found.position.step}" if found.position.step else ""
        say(f"Continuing after epoch {found.position.epoch}{step}.")


def on_workers(
    task: str, config: Config, run: RunDir, cluster: Cluster, arguments: dict[str, Any] | None = None
) -> tuple[int, str | None]:
    """Run ``task`` on the workers and show its progress (see ``run_workers``); returns an exit status and a message."""
    carry_out = run_here if cluster.local else run_workers
    try:
        with ProgressView(run):
            answer = carry_out(task, config, run, cluster, arguments or {})
    except RuntimeError as error:
        return EXIT_FAILED, str(error)
    status = {"finished": EXIT_DONE, "interrupted": EXIT_REQUEUE}.get(answer["status"], EXIT_FAILED)
    return status, answer["message"]


def run_task(task: str, config: Config, run: RunDir, arguments: dict[str, Any], *, local: bool = False) -> int:
    """Run ``task`` on the workers for a trained run, and print why it ended early; returns an exit status."""
    with workers_of(config, local) as cluster:
        return run_on(cluster, task, config, run, arguments)


def run_on(cluster: Cluster, task: str, config: Config, run: RunDir, arguments: dict[str, Any]) -> int:
    """As ``run_task``, on these workers."""
    began = time.time()
    with Recorder(run, results_root()):
        run.write_progress({"stage": "starting"})
        status, message = on_workers(task, config, run, cluster, arguments)
        run.check_lease()
        if config.method == EXTERNAL:
            external.record_end(run, status, message, time.time() - began)
    if status == EXIT_REQUEUE:
        say_interrupted(AGAIN)
    elif status == EXIT_FAILED:
        complain(f"error: {message}")
    return status


def say_failures(run: RunDir, config: Config, epochs: Iterable[int]) -> int:
    """Print which of the configured attacks failed on the networks after ``epochs``; returns an exit status."""
    summary = run.summary()
    failed = {attack: why for epoch in epochs for attack, why in failed_attacks(summary, epoch).items()}
    failed = {attack: why for attack, why in failed.items() if attack in config.eval.attacks}
    for attack, why in failed.items():
        again = f"python -m ima_dist.evaluate {shown(run.path)} --attack {attack}"
        complain(f"error: {attack} failed ({why}); all other results are stored. To try again: {again}")
    return EXIT_FAILED if failed else EXIT_DONE


def run_commands(config: Config, path: Path, epochs: Sequence[int], then: Iterable[dict[str, Any]] = ()) -> int:
    """Run in this process, one after another, the commands that the run at ``path`` still needs.

    The arguments are those of ``next_command``. Returns the exit status of the first command that fails or is
    interrupted, and EXIT_REQUEUE if the SLURM job ends too soon to start another; says how to continue.
    """
    done: list[tuple[str, list[str]]] = []
    try:
        while (command := next_command(config, path, epochs, then)) is not None:
            if command in done:
                complain(f"error: {path} still lacks results after its commands have ended.")
                return EXIT_FAILED
            if done and _too_late():
                say_interrupted(AGAIN)
                return EXIT_REQUEUE
            module, words = command
            with as_part():
                status = importlib.import_module(module).main(words)
            if status == EXIT_REQUEUE:
                say_interrupted(AGAIN)
            if status != EXIT_DONE:
                return status
            done.append(command)
    except ConfigError as error:
        complain(f"error: {error}")
        return EXIT_INPUT
    say(f"{path.name} is finished.")
    return EXIT_DONE


def _too_late() -> bool:
    """Whether this SLURM job ends too soon to start another command; the job's task sets the time (Unix time)."""
    return time.time() > float(os.environ.get("IMA_DIST_LAST_START") or "inf")


def _early_stop(summary: dict[str, Any], config: Config) -> str:
    early = summary.get("early_stop")
    if not early:
        return ""
    why = "as no margin grew any more" if early["best"] == early["after"] else "by --patience"
    return (
        f"Stopped after epoch {early['after']} of {config.epochs} {why}: the result is the network of epoch "
        f"{early['best']}."
    )


def _further(run: Run, points: list[Point]) -> Iterator[str | None]:
    """What stands below the table: a text for each evaluation that says more than an accuracy."""
    from ima_dist.results import certificates, distances, obfuscation, white_noise
    from ima_dist.results.binary import binary_report

    epoch = run.config.epochs
    yield white_noise.describe(points, run.config)
    yield distances.describe(run, epoch)
    yield binary_report(run)
    yield obfuscation.describe(run, epoch)
    yield certificates.describe(run, epoch)


def show_results(directory: RunDir, stages: Sequence[str] = ("start", "train", "evaluate")) -> None:
    """Draw the figures, and print the robustness table beside the paper's, the times of ``stages``, and paths."""
    from ima_dist.figures.png import draw_all
    from ima_dist.results import paper
    from ima_dist.results.by_class import overall_text
    from ima_dist.results.cost import cost_numbers, cost_text
    from ima_dist.results.self_tests import self_test_lines
    from ima_dist.results.split import split_level
    from ima_dist.results.table import robustness_table
    from ima_dist.rundir.run import Run

    run = Run(directory)
    config = run.config
    figures: list[Path] = []
    try:
        figures = draw_all(run)
    except OSError as error:
        complain(f"warning: figures are missing: {describe_os_error(error)}")
    found = paper.row_of(config)
    points = [point for point in run.points if point.epoch == config.epochs]
    row, number = (found[1], found[0]) if found else (None, None)
    failed = failed_attacks(run.summary, config.epochs)
    say("\n" + robustness_table(points, row, number, run.summary.get("test_samples"), failed))
    copied = paper.copied(config)
    note = f"This network was {copied}." if copied else ""
    level = split_level(run)
    for line in (_early_stop(run.summary, config), overall_text(run), level and f"Split {level}."):
        if line:
            say(line)
    for further in (note, *_further(run, points)):
        if further:
            say("\n" + further)
    if "without_square" in remarks(run):
        say("autoattack: without Square, which cannot attack samples of this shape under L2")
    for line in self_test_lines(run, config.epochs):
        say(line)
    for doubt in doubts(run):
        say(f"Doubtful: {doubt}")
    for problem in run.problems.values():
        complain(f"warning: {problem}")
    seconds = run.summary.get("seconds", {})
    parts = [f"{name} {seconds[name]:.0f} s" for name in stages if name in seconds]
    files = [f"  {shown(figure)}" for figure in figures]
    cost = cost_text(cost_numbers(run.summary.get("cost")))
    costs = [f"Cost: {cost}."] if cost else []
    say("\n".join([f"\nTime: {', '.join(parts)}.", *costs, f"Results: {shown(directory.path)}", *files]))

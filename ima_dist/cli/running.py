"""What the commands that train or evaluate share: checks before a run, and its results after."""

from __future__ import annotations

import os
import sys
from typing import Any

from ima_dist.cli.entry import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, say
from ima_dist.cli.paths import results_root, shown
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.launch.cluster import ray_cluster
from ima_dist.launch.workers import run_workers
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json


def check_inputs(config: Config) -> str:
    """Load the data and build the network once, before anything is written.

    Returns the digest of the data. Raises ConfigError.
    """
    import torch

    from ima_dist.data.load import load
    from ima_dist.training.network import make_network

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if config.device == "cuda" and not os.environ.get("RAY_ADDRESS") and not torch.cuda.is_available():
        raise ConfigError("--device cuda was asked for, but torch sees no CUDA device: use --device cpu or auto.")
    data = load(config.data, config.seed)
    make_network(config, data)
    return data.digest()


def check_checkpoints(run: RunDir, config: Config, data: str) -> None:
    """Say from where a run continues, and which newer checkpoints are damaged.

    Raises ConfigError if it has checkpoints and cannot continue from any of them on these data.
    """
    from ima_dist.training import checkpoint

    try:
        found, complaints = checkpoint.newest(run, checkpoint.Identity(config.fingerprint(), data))
    except checkpoint.Damaged as error:
        raise ConfigError(f"{error}.") from error
    for complaint in complaints:
        print(f"warning: {complaint}; the checkpoint before it is used.", file=sys.stderr, flush=True)
    if found is not None:
        step = f", step {found.position.step}" if found.position.step else ""
        say(f"Continuing after epoch {found.position.epoch}{step}.")


def show_results(directory: RunDir) -> None:
    """Draw the figures and print the robustness table beside the paper's, times and paths."""
    from ima_dist.figures.png import draw_all
    from ima_dist.results import obfuscation, paper
    from ima_dist.results.binary import binary_report
    from ima_dist.results.table import robustness_table
    from ima_dist.rundir.run import Run

    run = Run(directory)
    config = run.config
    figures = draw_all(run)
    found = paper.row_of(config)
    points = [point for point in run.points if point.epoch == config.epochs]
    say("\n" + robustness_table(points, found[1] if found else None, found[0] if found else None))
    for further in (binary_report(run), obfuscation.describe(run, config.epochs)):
        if further:
            say("\n" + further)
    for problem in run.problems.values():
        print(f"warning: {problem}", file=sys.stderr, flush=True)
    seconds = run.summary.get("seconds", {})
    parts = [f"{name} {seconds[name]:.0f} s" for name in ("start", "train", "evaluate") if name in seconds]
    files = [f"  {shown(figure)}" for figure in figures]
    say("\n".join([f"\nTime: {', '.join(parts)}.", f"Results: {shown(directory.path)}", *files]))


def check_weights(run: RunDir, epoch: int, data: str) -> None:
    """Raise ConfigError if there are no undamaged weights of ``epoch``, trained on the data with this digest."""
    from ima_dist.training import checkpoint

    try:
        checkpoint.weights_file(run, epoch, data)
    except checkpoint.Damaged as error:
        raise ConfigError(f"{error}.") from error


def run_task(task: str, config: Config, run: RunDir, arguments: dict[str, Any]) -> int:
    """Let workers do ``task`` (see ``run_workers``) on a run that has been trained; returns an exit status."""
    from ima_dist.cli.progress import ProgressView
    from ima_dist.tracking.recorder import Recorder

    with ray_cluster(config) as cluster:
        write_json(run.progress_path, {"stage": "starting"})
        try:
            with ProgressView(run), Recorder(run, results_root()):
                answer = run_workers(task, config, run, cluster, arguments)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_FAILED
    if answer["status"] == "interrupted":
        say("Interrupted. The same command continues.")
        return EXIT_REQUEUE
    if answer["status"] != "finished":
        print(f"error: {answer['message']}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE

"""``python -m ima_dist.train PRESET [--options]``: train, evaluate, and show the result."""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import datetime
from typing import Any

from ima_dist.cli.entry import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, describe_os_error, guarded, say
from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.cli.paths import absolute_output, existing, results_root, shown
from ima_dist.cli.running import check_checkpoints, check_inputs, show_results
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import PRESETS, make_config
from ima_dist.config.schema import Config
from ima_dist.config.values import differences, with_options
from ima_dist.launch.cluster import ray_cluster
from ima_dist.launch.signals import Stopped
from ima_dist.launch.workers import run_workers
from ima_dist.rundir.directory import RunDir, default_name
from ima_dist.rundir.files import write_json


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 configuration or input at fault, 75 checkpointed and to be continued, 1 else."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.train", description=__doc__, allow_abbrev=False)
    parser.add_argument("preset", nargs="?", metavar="PRESET", help=", ".join(PRESETS))
    parser.add_argument("--out", metavar="RUN_DIR", help="where results go (default: runs/NAME)")
    parser.add_argument("--resume", metavar="RUN_DIR", help="continue this run; its configuration is kept")
    add_options(parser)
    arguments = parser.parse_args(argv)
    options = user_options(arguments)

    if arguments.resume:
        if arguments.out:
            raise ConfigError("--out and --resume exclude one another: a resumed run stays where it is.")
        run = RunDir.open(existing(arguments.resume))
        config = _resumed(run, arguments.preset, options)
        if run.status == "finished":
            say(f"{run.path} is finished; nothing to do.")
            return EXIT_DONE
        with run.writing():
            run.record(config)
            check_checkpoints(run, config, check_inputs(config))
            return _train(config, run, arguments.out)
    else:
        if not arguments.preset:
            raise ConfigError(f"Name a preset ({', '.join(PRESETS)}) or a run to continue with --resume RUN_DIR.")
        config = make_config(arguments.preset, options)
    check_inputs(config)
    return _train(config, None, arguments.out)


def _resumed(run: RunDir, preset: str | None, options: dict[str, Any]) -> Config:
    saved = run.config()
    if preset not in (None, saved.preset):
        raise ConfigError(f"{run.path} is a run of {saved.preset}, not of {preset}: leave the preset out.")
    config = with_options(saved, options)
    different = differences(saved, config)
    if different:
        flags = ", ".join("--" + name.replace("_", "-") for name in different)
        raise ConfigError(f"{run.path} was started with another {flags}: leave it out, or start a new run.")
    return config


def _train(config: Config, run: RunDir | None, out: str | None) -> int:
    """Train in ``run``, held by the caller, or in a new one, made when the cluster has what it needs."""
    began = time.time()
    from ima_dist.cli.progress import ProgressView
    from ima_dist.tracking.recorder import Recorder

    with contextlib.ExitStack() as held:
        cluster = held.enter_context(ray_cluster(config))
        if run is None:
            out = out or str(results_root() / default_name(config, datetime.now()))
            run = RunDir.create(config, absolute_output(out))
            held.enter_context(run.writing())
        previous = run.summary()
        write_json(run.progress_path, {"stage": "starting"})
        write_json(run.summary_path, {**previous, **_identity(config), "status": "running", "message": None})
        # Closed after the last words of the run, which it records too.
        held.enter_context(Recorder(run, results_root()))
        say(
            f"{config.preset}, {config.method}, {config.norm}: {config.epochs} epochs on {cluster}. "
            f"Results: {shown(run.path)}"
        )
        started = time.time()
        status, message = EXIT_DONE, None
        try:
            with ProgressView(run):
                answer = run_workers("train", config, run, cluster)
            message = answer["message"]
            status = {"finished": EXIT_DONE, "interrupted": EXIT_REQUEUE}.get(answer["status"], EXIT_FAILED)
        except Stopped:
            status = EXIT_REQUEUE
        except RuntimeError as error:
            status, message = EXIT_FAILED, str(error)
        run.check_lease()
        summary = run.summary()
        summary["status"] = {EXIT_DONE: "finished", EXIT_REQUEUE: "interrupted"}.get(status, "failed")
        summary["message"] = message
        seconds = {"start": started - began, **summary.get("seconds", {})}
        summary["seconds"] = seconds
        summary["wall_seconds"] = previous.get("wall_seconds", 0.0) + time.time() - began
        try:
            write_json(run.summary_path, summary)
        except OSError as error:
            # A full disk: why the run ended, and how to continue, is still to be said.
            status, message = EXIT_FAILED, message or describe_os_error(error)
    if status == EXIT_REQUEUE:
        say(f"Interrupted. Continue with: {_resume_command(run)}")
    elif status == EXIT_FAILED:
        sentence = str(message).rstrip(".")
        print(f"error: {sentence}. To continue from the last checkpoint: {_resume_command(run)}", file=sys.stderr)
    else:
        show_results(run)
    return status


def _identity(config: Config) -> dict[str, Any]:
    return {"preset": config.preset, "method": config.method, "norm": config.norm, "seed": config.seed}


def _resume_command(run: RunDir) -> str:
    return f"python -m ima_dist.train --resume {shown(run.path)}"


if __name__ == "__main__":
    sys.exit(main())

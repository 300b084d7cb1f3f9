"""``python -m ima_dist.train PRESET [--options]``: train, evaluate, and show the result."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ima_dist import config as configuration
from ima_dist import launcher
from ima_dist.config import Config, ConfigError
from ima_dist.presets import PRESETS, make_config
from ima_dist.results.lease import LeaseLost
from ima_dist.results.rundir import RunDir, default_name, write_json

EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE = 0, 1, 2, 75


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 configuration or input at fault, 75 checkpointed and to be continued, 1 else."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run an entry point: a user's mistake, a full disk and a signal become one sentence and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A log in ASCII shows a question mark for a letter that it lacks.
            stream.reconfigure(errors="replace")
    try:
        with launcher.stopping_at_once():
            return command(argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except launcher.Stopped:
        print("Stopped; what had been saved is kept.", file=sys.stderr)
        return EXIT_REQUEUE
    except OSError as error:
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return EXIT_FAILED
    except LeaseLost as error:
        print(f"error: {error}.", file=sys.stderr)
        return EXIT_FAILED


def user_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given; directories made absolute, because workers have another one."""
    options = configuration.given_options(arguments)
    if "data.dir" in options:
        options["data.dir"] = str(Path(options["data.dir"]).absolute())
    return options


def say(text: str) -> None:
    """Print a line; a reader who has gone away (``| head``) does not end the run."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would write what is left at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe_os_error(error: OSError) -> str:
    """One sentence: which file, and what the system says."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


def _main(argv: list[str]) -> int:
    parser = configuration.OneLineParser(prog="python -m ima_dist.train", description=__doc__, allow_abbrev=False)
    parser.add_argument("preset", nargs="?", metavar="PRESET", help=", ".join(PRESETS))
    parser.add_argument("--out", metavar="RUN_DIR", help="where results go (default: runs/NAME)")
    parser.add_argument("--resume", metavar="RUN_DIR", help="continue this run; its configuration is kept")
    configuration.add_options(parser)
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
    config = configuration.replace(saved, options)
    different = configuration.differences(saved, config)
    if different:
        flags = ", ".join("--" + name.replace("_", "-") for name in different)
        raise ConfigError(f"{run.path} was started with another {flags}: leave it out, or start a new run.")
    return config


def _train(config: Config, run: RunDir | None, out: str | None) -> int:
    """Train in ``run``, held by the caller, or in a new one, made when the cluster has what it needs."""
    began = time.time()
    from ima_dist.progress import ProgressView
    from ima_dist.results.recording import Recorder

    with contextlib.ExitStack() as held:
        cluster = held.enter_context(launcher.cluster(config))
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
                answer = launcher.run_workers("train", config, run, cluster)
            message = answer["message"]
            status = {"finished": EXIT_DONE, "interrupted": EXIT_REQUEUE}.get(answer["status"], EXIT_FAILED)
        except launcher.Stopped:
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


def check_inputs(config: Config) -> str:
    """Load the data and build the network once, before anything is written.

    Returns the digest of the data. Raises ConfigError.
    """
    import torch

    from ima_dist.data.dataset import load
    from ima_dist.engine.setup import make_network

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
    from ima_dist.engine import checkpoint

    try:
        found, complaints = checkpoint.newest(run, checkpoint.Identity(config.fingerprint(), data))
    except checkpoint.Damaged as error:
        raise ConfigError(f"{error}.") from error
    for complaint in complaints:
        print(f"warning: {complaint}; the checkpoint before it is used.", file=sys.stderr, flush=True)
    if found is not None:
        step = f", step {found.position.step}" if found.position.step else ""
        say(f"Continuing after epoch {found.position.epoch}{step}.")


def results_root() -> Path:
    """Directory that holds runs when no --out is given: ``runs`` here, or in the home directory under Ray jobs."""
    return user_directory() / "runs"


def absolute_output(out: str | Path) -> Path:
    """``out`` made absolute against a directory of the user's."""
    return user_directory() / out


def existing(path: str | Path) -> Path:
    """A directory that a user names: seen from here, or from where a submitted job's results go."""
    return Path(path) if Path(path).exists() else user_directory() / path


def user_directory() -> Path:
    """The current directory, unless it is Ray's temporary copy of a submitted job, which Ray deletes."""
    here = Path.cwd()
    if "working_dir_files" in here.parts and any(p.startswith("_ray_pkg_") for p in here.parts):
        return Path(os.environ.get("IMA_DIST_HOME", Path.home()))
    return here


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def show_results(run: RunDir) -> None:
    """Draw the figures and print the robustness table beside the paper's, times and paths."""
    from ima_dist.results import obfuscation, paper
    from ima_dist.results.binary import binary_report
    from ima_dist.results.figures import draw_all
    from ima_dist.results.table import robustness_table

    config, summary = run.config(), run.summary()
    figures = draw_all(run)
    found = paper.row_of(config)
    curves = [c for c in summary["curves"] if c["epoch"] == config.epochs]
    say("\n" + robustness_table(curves, found[1] if found else None, found[0] if found else None))
    for further in (binary_report(run), obfuscation.describe(run, config.epochs)):
        if further:
            say("\n" + further)
    seconds = summary.get("seconds", {})
    parts = [f"{name} {seconds[name]:.0f} s" for name in ("start", "train", "evaluate") if name in seconds]
    say("\n".join([f"\nTime: {', '.join(parts)}.", f"Results: {shown(run.path)}", *(f"  {shown(f)}" for f in figures)]))


if __name__ == "__main__":
    sys.exit(main())

"""``python -m ima_dist.train PRESET [--options]``: train, evaluate, and show the result."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ima_dist.cli.entry import (
    absolute_output,
    describe_os_error,
    existing,
    guarded,
    leave,
    results_root,
    say,
    say_interrupted,
    shown,
)
from ima_dist.cli.kept_files import check_kept
from ima_dist.cli.notify import add_notify, notify
from ima_dist.cli.own_code import keep_code
from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.cli.running import (
    add_local,
    check_checkpoints,
    check_inputs,
    check_local,
    on_workers,
    say_failures,
    say_findings,
    show_results,
)
from ima_dist.cli.show_config import add_show_config, config_text
from ima_dist.cli.units import LEVELS, add_unit, in_data_units
from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, ConfigError, complain
from ima_dist.config.own import OWN, check_chosen, chosen_text
from ima_dist.config.presets import PRESETS, data_name, make_config
from ima_dist.config.recipe import with_recipe
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.config.values import as_option, differences, with_options
from ima_dist.launch.cluster import Cluster
from ima_dist.launch.local import workers_of
from ima_dist.launch.signals import Stopped
from ima_dist.rundir.directory import RunDir, default_name
from ima_dist.tracking.recorder import Recorder


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 invalid configuration or input, 75 interrupted and can be resumed, 128 + signal stopped
    with nothing to resume, 1 any other failure.
    """
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.train", description=__doc__, allow_abbrev=False)
    parser.add_argument("preset", nargs="?", metavar="PRESET", help=", ".join((*PRESETS, OWN)))
    parser.add_argument("--out", metavar="RUN_DIR", help="directory for the results (default: runs/NAME)")
    parser.add_argument("--resume", metavar="RUN_DIR", help="continue this run with its own configuration")
    add_show_config(parser)
    add_local(parser)
    add_unit(parser)
    add_notify(parser)
    add_options(parser)
    arguments = parser.parse_args(argv)
    options = user_options(arguments)
    check_local(arguments, options)
    if not arguments.resume:
        if not arguments.preset:
            raise ConfigError(
                f"Give a preset ({', '.join((*PRESETS, OWN))}), or a run to continue with --resume RUN_DIR."
            )
        config, data = make_config(arguments.preset, options), None
        if arguments.eps_unit == "range":
            config, data = in_data_units(config, LEVELS)
        if arguments.show_config:
            say(config_text(config, options))
            return EXIT_DONE
        chosen = chosen_text(config, with_recipe(options)) if config.preset == OWN else ""
        if chosen:
            say(chosen)
        out = absolute_output(arguments.out or results_root() / default_name(config, datetime.now()))
        RunDir.free(out)
        with _stopped_with(out):
            findings = check_inputs(config, data=data).findings
            check_chosen(config, with_recipe(options), findings["inputs"])
            del data  # the workers load their own
            outcome = train_new(config, out, findings, workers_of(config, arguments.local))
            return _report(outcome, config, arguments.notify)
    if arguments.out:
        raise ConfigError("--out cannot be combined with --resume: a resumed run stays where it is.")
    run = RunDir.open(existing(arguments.resume))
    if arguments.eps_unit == "range":
        raise ConfigError(
            "--eps-unit cannot be combined with --resume: the run has its noise levels in the data's unit."
        )
    config = resumed(run, arguments.preset, options)
    if arguments.show_config:
        say(config_text(config, options))
        return EXIT_DONE
    if run.status == "finished":
        say(f"{run.path} is finished; nothing to do.")
        return EXIT_DONE
    with _stopped_with(run.path):
        return _report(train_on(config, run, workers_of(config, arguments.local)), config, arguments.notify)


@contextlib.contextmanager
def _stopped_with(path: Path) -> Iterator[None]:
    """After a signal, the sentence and the status depend on what it leaves at ``path``."""
    try:
        yield
    except Stopped as stopped:
        run = RunDir(path)
        if not run.config_path.exists():
            stopped.sentence = "Stopped before anything was written: give the same command again."
        elif run.status == "finished":
            stopped.sentence = f"Stopped; the run has finished. Results: {shown(run.path)}"
        else:
            stopped.sentence, stopped.status = f"Stopped. Continue with: {resume_command(run)}", EXIT_REQUEUE
        raise


class Outcome(NamedTuple):
    """How a training has ended. status: an exit status. message: why it failed, or was interrupted."""

    run: RunDir
    status: int
    message: str | None = None


Workers = contextlib.AbstractContextManager[Cluster]
#: Writes into a new run what it needs beside its configuration.
Keep = Callable[[RunDir], object]


def train_new(
    config: Config, out: Path, findings: dict[str, Any], workers: Workers, keep: Keep | None = None
) -> Outcome:
    """Train a new run in ``out``, which is made once the workers are there."""
    return _train(config, None, out, findings, workers, keep)


def train_on(config: Config, run: RunDir, workers: Workers) -> Outcome:
    """Continue ``run``. Raises ConfigError if it cannot be continued with this configuration and its data."""
    with run.writing():
        check_kept(run, config)
        run.record(config)
        digest, findings = check_inputs(config, run)
        check_checkpoints(run, config, digest)
        return _train(config, run, None, findings, workers)


def resumed(run: RunDir, preset: str | None, options: dict[str, Any]) -> Config:
    """The configuration of ``run`` with ``options`` that do not alter its result. Raises ConfigError."""
    saved = run.config()
    if saved.method == EXTERNAL:
        raise ConfigError(
            f"{run.path} holds a network trained elsewhere, which is only evaluated: python -m ima_dist.evaluate "
            f"{run.path}."
        )
    if preset not in (None, saved.preset):
        raise ConfigError(f"{run.path} is a run of {saved.preset}, not of {preset}: leave the preset out.")
    config = with_options(saved, with_recipe(options))
    different = differences(saved, config)
    if different:
        # Other values may follow from those that were given.
        flags = ", ".join(map(as_option, [name for name in different if name in options] or different))
        raise ConfigError(f"{run.path} was started with another {flags}: leave it out, or start a new run.")
    return config


def _train(
    config: Config,
    run: RunDir | None,
    out: Path | None,
    findings: dict[str, Any],
    workers: Workers,
    keep: Keep | None = None,
) -> Outcome:
    """Train in ``run``, whose lease the caller holds, or in a new one, created once the cluster is known to fit it."""
    began = time.time()
    with contextlib.ExitStack() as held:
        cluster = held.enter_context(workers)
        if run is None:
            assert out is not None
            run = RunDir.create(config, out)
            held.enter_context(run.writing())
            if keep is not None:
                keep(run)
            keep_code(run, config)
            _keep_start(run, config)
        earlier_seconds = _record_start(run, config, findings)
        # Left last but for the cluster and the lease, so that it records how the run ended.
        held.enter_context(Recorder(run, results_root()))
        epochs = f"{config.epochs} epoch{'s' * (config.epochs != 1)}"
        say(f"{data_name(config)}, {config.method}, {config.norm}: {epochs} on {cluster}. Results: {shown(run.path)}")
        say_findings(config, findings)
        start_seconds = time.time() - began
        try:
            status, message = on_workers("train", config, run, cluster)
        except (Stopped, KeyboardInterrupt):
            status, message = EXIT_REQUEUE, None
        run.check_lease()
        try:
            _record_end(run, status, message, start_seconds, earlier_seconds + time.time() - began)
        except OSError as error:
            # Such as a full disk: the user must still be told why the run ended, and how to continue it.
            why = describe_os_error(error)
            if status == EXIT_DONE:
                status, message = EXIT_FAILED, why
            else:
                complain(f"warning: {why}")
    return Outcome(run, status, message)


def _keep_start(run: RunDir, config: Config) -> None:
    from ima_dist.training.start_weights import keep

    keep(run, config.model)


def _record_start(run: RunDir, config: Config, findings: dict[str, Any]) -> float:
    """Mark the run as running; returns the seconds that earlier starts took."""
    summary = run.summary()
    identity = {name: getattr(config, name) for name in ("preset", "method", "norm", "seed")}
    identity["findings"] = findings
    run.write_progress({"stage": "starting"})
    run.write_json(run.summary_path, {**summary, **identity, "status": "running", "message": None})
    return summary.get("wall_seconds", 0.0)


def _record_end(run: RunDir, status: int, message: str | None, start_seconds: float, wall_seconds: float) -> None:
    summary = run.summary()
    how = {EXIT_DONE: "finished", EXIT_REQUEUE: "interrupted"}.get(status, "failed")
    seconds = {"start": start_seconds, **summary.get("seconds", {})}
    end = {"status": how, "message": message, "seconds": seconds, "wall_seconds": wall_seconds}
    run.write_json(run.summary_path, {**summary, **end})


def resume_command(run: RunDir) -> str:
    return f"python -m ima_dist.train --resume {shown(run.path)}"


def _report(outcome: Outcome, config: Config, to: str | None) -> int:
    """Print the results, or why there are none, and tell whom ``--notify`` names; returns an exit status."""
    run, status, message = outcome
    resume = resume_command(run)
    if status != EXIT_REQUEUE:
        failed = status != EXIT_DONE
        why = str(message) if failed else None
        notify(to, "run", run.path, message=why, summary=run.summary(), command=resume if failed else None)
    if status == EXIT_DONE:
        show_results(run)
        return say_failures(run, config, [config.epochs])
    if status == EXIT_REQUEUE:
        say_interrupted(f"Continue with: {resume}")
    else:
        reason = str(message).rstrip(".")
        complain(f"error: {reason}. To continue from the last checkpoint: {resume}")
    return status


if __name__ == "__main__":
    leave(main())

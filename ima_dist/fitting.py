"""``ima_dist.fit``: train in Python as ``python -m ima_dist.train`` does, in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

from ima_dist.cli.entry import absolute_output, existing, results_root, say, shown
from ima_dist.cli.given_code import Given, given
from ima_dist.cli.running import check_inputs, say_failures, show_results
from ima_dist.config.errors import EXIT_DONE, EXIT_REQUEUE, ConfigError
from ima_dist.config.own import OWN, check_chosen, chosen_text
from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.launch import signals
from ima_dist.launch.local import prepare_process, workers_of
from ima_dist.rundir.directory import RunDir, default_name
from ima_dist.rundir.run import Run
from ima_dist.train import Outcome, Workers, resume_command, resumed, train_new, train_on

if TYPE_CHECKING:
    from torch import nn


def fit(
    preset: str | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    network: Callable[..., nn.Module] | str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    **options: Any,
) -> Run:
    """Train a network, evaluate it, and return the run, as ``python -m ima_dist.train`` does with the same options.

    One worker trains in this process. With ``workers`` above 1, or the address of a cluster in RAY_ADDRESS, Ray's do.

    Args:
        preset: ``"moons"``, another experiment of the paper, or ``"own"``.
        data: in place of the preset's, ``{"train": (x, y), "val": (x, y), "test": (x, y)}`` as NumPy arrays or tensors:
            x (N, ...) uint8, or floating point as the network sees it; y (N,) whole numbers from 0; optionally a third
            entry with what must not be split, such as the patient of each sample. Optional: ``val``, ``box`` (low,
            high), ``class_names``. The run keeps a copy, from which it can be resumed and evaluated.
        network: in place of the preset's, ``build(num_classes, input_shape) -> nn.Module``, or its name as
            ``--model.factory`` takes it. The run keeps the source of a function of a notebook or script.
        out: directory for the results, by default ``runs/NAME``.
        resume: directory of a run to continue with its own configuration; a finished one is returned as it is.
        options: as on the command line, without dashes: ``epochs=5``, ``eps_max=0.1``, ``**{"data.subset": 400}``.

    Raises:
        ConfigError: an option or input is at fault; nothing has been written.
        RuntimeError: the training failed; the run keeps its checkpoints.
        KeyboardInterrupt: Ctrl-C, or the button of a notebook, after a checkpoint; at once on the second.
        SystemExit: SIGTERM or SIGUSR2, after a checkpoint, with status 75.
        LeaseLost, OSError: another process has become the writer of the run, or it cannot be written.
    """
    prepare_process()
    built = None if network is None else given(network, "network")
    if built is not None:
        if "model.factory" in options:
            raise ConfigError("Give either network or model.factory.")
        options["model.factory"] = built.reference
    if "data.dir" in options:
        options["data.dir"] = str(Path(options["data.dir"]).absolute())
    if resume is None:
        config, outcome = _new(preset, data, built, out, options)
    elif out is not None or data is not None:
        raise ConfigError("A resumed run keeps its directory and data: leave out and data out.")
    else:
        run = RunDir.open(existing(resume))
        config = resumed(run, preset, options)
        if run.status == "finished":
            say(f"{shown(run.path)} is finished; nothing to do.")
            return Run.open(run.path)
        if built is not None:
            built.use(run)
        outcome = train_on(config, run, _workers(config))
    return _ended(outcome, config)


def _ended(outcome: Outcome, config: Config) -> Run:
    """The finished run, with its results printed; raises for one that has not finished."""
    if outcome.status == EXIT_REQUEUE:
        say(f"Interrupted. Continue with: {resume_command(outcome.run)}")
        raise signals.ending(signals.received[-1] if signals.received else SIGTERM)
    if outcome.status != EXIT_DONE:
        reason = str(outcome.message).rstrip(".")
        raise RuntimeError(f"{reason}. To continue from the last checkpoint: {resume_command(outcome.run)}")
    show_results(outcome.run)
    say_failures(outcome.run, config, [config.epochs])
    return Run.open(outcome.run.path)


def _new(
    preset: str | None,
    data: Mapping[str, Any] | None,
    built: Given | None,
    out: str | Path | None,
    options: dict[str, Any],
) -> tuple[Config, Outcome]:
    from ima_dist.data import arrays, load

    if preset is None:
        raise ConfigError('Give a preset, such as "moons" or "own", or a run to continue as resume.')
    found, file = None, b""
    if data is None:
        config = make_config(preset, options)
    else:
        if {"data.source", "data.dir"} & options.keys() or any(name.startswith("data.args.") for name in options):
            raise ConfigError("Give either data or the options data.source, data.dir and data.args.")
        options |= {"data.source": arrays.SOURCE}
        config = make_config(preset, {**options, "data.dir": "."})  # for mistakes, before the data are read
        try:
            found = load.checked(dict(data) if isinstance(data, Mapping) else data)
        except ConfigError as error:
            raise ConfigError(f"data cannot be used: {error}") from error
        file, checksum = arrays.content(found)
        options |= {"data.args.sha256": checksum}
    place = absolute_output(out or results_root() / default_name(config, datetime.now()))
    run = RunDir.free(place)
    if found is not None:
        config = make_config(preset, {**options, "data.dir": str(run.given_dir)})
        try:
            found = load.grouped(found, config.data)
        except ConfigError as error:
            raise ConfigError(f"data cannot be used: {error}") from error
        found = load.subset(found, config.data.subset, config.seed)
    chosen = chosen_text(config, options) if config.preset == OWN else ""
    if chosen:
        say(chosen)
    findings = check_inputs(config, data=found).findings
    check_chosen(config, options, findings["inputs"])

    def keep(run: RunDir) -> None:
        nonlocal found, file
        if found is not None:
            with run.replacing(run.given_dir / arrays.FILE) as opened:
                opened.write(file)
        found, file = None, b""  # the workers load their own
        if built is not None:
            built.keep(run)

    return config, train_new(config, place, findings, _workers(config), keep)


def _workers(config: Config) -> Workers:
    local = config.workers in (None, 1) and not os.environ.get("RAY_ADDRESS")
    if not local and threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            "Ray's workers can only be started from the main thread: call fit there, or leave out workers."
        )
    return workers_of(config, local, guest=True)

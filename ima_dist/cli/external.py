"""``python -m ima_dist.evaluate --model.factory …``: a network that was trained elsewhere, in a run directory."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ima_dist.cli.entry import absolute_output, results_root
from ima_dist.cli.own_code import keep_code
from ima_dist.cli.units import in_data_units
from ima_dist.config.errors import EXIT_DONE, EXIT_REQUEUE, ConfigError
from ima_dist.config.presets import OWN, PRESETS, external_config
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.config.values import as_option, differences, with_options
from ima_dist.rundir.directory import RunDir, default_name

if TYPE_CHECKING:
    from torch import nn

    from ima_dist.data.types import DataSet

#: The options of such a network and its data, beside those of every evaluation.
OPTIONS = (
    "name", "norm", "seed", "dtype", "data.", "model.factory", "model.args", "model.mean", "model.std", "model.weights",
)  # fmt: skip


def add_external(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(PRESETS)
    about = f"of a network trained elsewhere: its data are those of this preset ({known}; default: own, --data.source)"
    parser.add_argument("--preset", metavar="NAME", help=about)
    about = "of a network trained elsewhere: directory for the results (default: runs/NAME)"
    parser.add_argument("--out", metavar="DIR", help=about)


def asked(arguments: argparse.Namespace, options: dict[str, Any]) -> tuple[RunDir | None, Config, DataSet | None, Path]:
    """The run that holds this network already, if there is one; configuration, data if loaded, and run directory.

    Raises ConfigError if the directory holds anything else.
    """
    if not options.get("model.factory"):
        raise ConfigError("Give a run, or a network that was trained elsewhere: --model.factory and --model.weights.")
    if arguments.after or arguments.select:
        raise ConfigError("--epochs and --select go with a run: a network trained elsewhere has no epochs.")
    config, data = external_config(arguments.preset or OWN, options), None
    if arguments.eps_unit == "range":
        config, data = in_data_units(config, {"eval.noise"} & options.keys())
        config = with_options(config, {"eps_max": config.eval.noise[-1]})
    out = absolute_output(arguments.out or results_root() / default_name(config, datetime.now()))
    if not (out / "config.yaml").exists():
        return None, config, data, RunDir.free(out).path
    run = RunDir.open(out)
    saved = run.config()
    config = with_options(config, {"eps_max": saved.eps_max})  # of its first evaluation
    different = [as_option(name) for name in differences(saved, config)]
    if saved.method != EXTERNAL or different:
        of = f"with another {', '.join(different)}" if saved.method == EXTERNAL else "that was trained here"
        raise ConfigError(f"{out} holds a network {of}: give another --out.")
    return run, config, data, out


def check_options(options: dict[str, Any], arguments: argparse.Namespace, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError for an option of a network trained elsewhere beside a run, which has its own."""
    wrong = [as_option(name) for name in options if not name.startswith(allowed)]
    wrong += [f"--{name}" for name in ("preset", "out") if getattr(arguments, name)]
    if wrong:
        raise ConfigError(f"{wrong[0]} goes with a network trained elsewhere, and a run has its own: leave it out.")


def begin(run: RunDir, config: Config, data: DataSet, network: nn.Module) -> None:
    """Keep the network, its code and what it takes in ``run``, which this process holds. Raises OSError, LeaseLost."""
    from ima_dist.training.external import bring_in
    from ima_dist.training.start_weights import keep

    keep_code(run, config)
    keep(run, config.model)
    identity = {name: getattr(config, name) for name in ("preset", "method", "norm", "seed")}
    run.write_json(run.summary_path, {**run.summary(), **identity, "status": "running", "message": None})
    bring_in(run, config, data, network)


def record_end(run: RunDir, status: int, message: str | None, seconds: float) -> None:
    """Record how its first evaluation, which took ``seconds``, has ended; later ones change nothing."""
    summary = run.summary()
    if summary.get("status") == "finished":
        return
    how = {EXIT_DONE: "finished", EXIT_REQUEUE: "interrupted"}.get(status, "failed")
    seconds += summary.get("wall_seconds", 0.0)
    run.write_json(run.summary_path, {**summary, "status": how, "message": message, "wall_seconds": seconds})

"""``python -m ima_dist.evaluate RUN_DIR``: evaluate the network of a finished run again, with other settings.

A network that was trained elsewhere is evaluated in the same way, into a run directory of its own:

    python -m ima_dist.evaluate --model.factory torchvision:resnet18 --model.weights FILE --preset cifar10 --out DIR

with --data.source, --eval.noise and further options for data and networks of your own.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ima_dist.cli import external
from ima_dist.cli.entry import existing, guarded, leave, say, shown
from ima_dist.cli.kept_files import check_kept
from ima_dist.cli.parser import OneLineParser, add_options, listed, user_options
from ima_dist.cli.running import (
    add_local,
    check_inputs,
    check_local,
    run_on,
    say_failures,
    say_findings,
    show_results,
    tried,
)
from ima_dist.cli.show_config import add_show_config, config_text
from ima_dist.cli.units import LEVELS, add_unit, in_data_units
from ima_dist.config.attacks import EVALUATIONS, SMOOTHING
from ima_dist.config.errors import EXIT_DONE, ConfigError, complain
from ima_dist.config.presets import data_name
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.config.values import with_options
from ima_dist.launch.local import workers_of
from ima_dist.results import certificates
from ima_dist.results.self_tests import MOST_TESTED, NOT_TESTED, self_test_lines
from ima_dist.results.tradeoff import done_epochs, selected, tradeoff_table
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.epochs import spans
from ima_dist.rundir.run import Run

if TYPE_CHECKING:
    from ima_dist.data.types import DataSet

_AS_WRITTEN = argparse.RawDescriptionHelpFormatter
_ALLOWED = ("eval.", "smoothing.", "workers", "cpus_per_worker", "device", "allow", "data.dir", "data.download")


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv, resumable=True)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(
        prog="python -m ima_dist.evaluate", description=__doc__, formatter_class=_AS_WRITTEN, allow_abbrev=False
    )
    parser.add_argument("run", nargs="?", metavar="RUN_DIR", help="a run of ima_dist.train that has finished training")
    parser.add_argument(
        "--attack", metavar="A,B,…", help=f"only these of {', '.join(EVALUATIONS)} (for --eval.attacks)"
    )
    external.add_external(parser)
    add_local(parser)
    add_options(parser, *_ALLOWED, *external.OPTIONS)
    add_unit(parser)
    add_show_config(parser)
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="also test the attacks: do they find adversarial samples that were planted in the network, for up to "
        f"{MOST_TESTED} test samples?",
    )
    which = parser.add_mutually_exclusive_group()
    last = "the weights after these epochs (default: the last)"
    which.add_argument("--epochs", dest="after", metavar="A,B,…", help=last)
    rule = 'the last epoch with such a validation accuracy, "val_accuracy>=0.90", or best-robust on validation samples'
    which.add_argument("--select", metavar="RULE", help=rule)
    arguments = parser.parse_args(argv)
    options = user_options(arguments)
    check_local(arguments, options)
    if arguments.attack:
        options["eval.attacks"] = tuple(name.strip() for name in arguments.attack.split(","))
    data = None
    if arguments.run is None:
        run, config, data, out = external.asked(arguments, options)
    else:
        external.check_options(options, arguments, _ALLOWED)
        run, out = RunDir.open(existing(arguments.run)), Path(arguments.run)
        config = with_options(run.config(), options)
        if arguments.eps_unit == "range":
            config, data = in_data_units(config, {name for name in LEVELS if name in options})
    if arguments.show_config:
        say(config_text(config, options))
        return EXIT_DONE
    epochs = [config.epochs] if run is None else _epochs(run, config, arguments)
    if arguments.self_test and (config.eval.noise[-1] <= 0 or not set(config.eval.attacks) - set(NOT_TESTED)):
        raise ConfigError("--self-test needs a noise level above 0 and an attack that searches: --attack worst, say.")
    asked = {"epochs": epochs, **({"self_test": True} if arguments.self_test else {})}
    run, status = _evaluated(run, config, data, out, asked, arguments.local)
    if status != EXIT_DONE:
        return status
    if epochs == [config.epochs]:
        show_results(run, stages=["evaluate"])
    else:
        points = [point for point in run.points() if point.epoch in epochs and point.attack in config.eval.attacks]
        if points:
            say("\n" + tradeoff_table(config, points, run.read_history()))
        for epoch in epochs:
            if SMOOTHING in config.eval.attacks:
                say(f"\nEpoch {epoch}. {certificates.describe(Run(run), epoch)}")
            for line in self_test_lines(Run(run), epoch):
                say(f"Epoch {epoch}: {line}")
    return say_failures(run, config, epochs)


def _evaluated(
    run: RunDir | None, config: Config, data: DataSet | None, out: Path, asked: dict[str, Any], local: bool
) -> tuple[RunDir, int]:
    """Evaluate a run, or a network from elsewhere, for which one is made at ``out`` once the cluster fits it.

    asked: the arguments of ``worker.tasks.evaluate_task``.
    """
    with contextlib.ExitStack() as held:
        if run is not None:
            held.enter_context(run.writing())
            check_kept(run, config)
        network = None
        if config.method == EXTERNAL and (run is None or not run.read_history()):
            data, network, findings = tried(config, run, data)
        else:
            findings, data = check_inputs(config, run, asked["epochs"], data).findings, None
        cluster = held.enter_context(workers_of(config, local))
        if run is None:
            run = RunDir.create(config, out)
            held.enter_context(run.writing())
        if network is not None and data is not None:
            what = f"{data_name(config)}, {config.norm}: a network trained elsewhere"
            say(f"{what}, on {cluster}. Results: {shown(run.path)}")
            external.begin(run, config, data, network)
        del data, network  # the workers load their own
        run.write_json(run.summary_path, {**run.summary(), "findings": findings})
        say_findings(config, findings)
        return run, run_on(cluster, "evaluate", config, run, asked)


def _epochs(run: RunDir, config: Config, arguments: argparse.Namespace) -> list[int]:
    history = run.read_history()
    done = done_epochs(run, history, run.summary(), config)
    if arguments.select:
        epochs = [selected(arguments.select, run, history, config)]
        complain(f"{arguments.select}: epoch {epochs[0]}.")
        return epochs
    if not arguments.after:
        if config.epochs not in done and config.method != EXTERNAL:
            resume = f"python -m ima_dist.train --resume {run.path}"
            raise ConfigError(f"{run.path} has not finished training: continue it with {resume} first.")
        return [config.epochs]
    epochs = listed(arguments.after, int, "--epochs must be whole numbers such as 10,20,30")
    missing = sorted(set(epochs) - set(done))
    if missing:
        raise ConfigError(f"{run.path} has no epoch {missing[0]}: it has {spans(done) or 'none'}.")
    return sorted(set(epochs))


if __name__ == "__main__":
    leave(main())

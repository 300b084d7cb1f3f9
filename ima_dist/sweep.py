"""``python -m ima_dist.sweep jobs/SWEEP.yaml``: train and evaluate every combination that a sweep file asks for.

``python -m ima_dist.sweep best DIR --min-clean 0.90`` chooses among the results. The same command again, or
``--resume DIR``, continues a sweep; finished runs are not trained again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ima_dist.cli.entry import (
    AGAIN,
    absolute_output,
    existing,
    guarded,
    leave,
    results_root,
    say,
    say_interrupted,
    shown,
)
from ima_dist.cli.notify import VARIABLE, add_notify, notify
from ima_dist.cli.parser import OneLineParser, add_options, listed, user_options
from ima_dist.cli.running import check_inputs, run_commands
from ima_dist.cli.show_config import add_show_config, config_text
from ima_dist.config.attacks import ATTACKS
from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, ConfigError, complain, did_you_mean
from ima_dist.config.numbers import number
from ima_dist.config.presets import train_command
from ima_dist.config.values import as_option
from ima_dist.launch.cluster import set_environment
from ima_dist.plans.jobfile import run_path
from ima_dist.plans.pending import next_command
from ima_dist.plans.sweepfile import Point, Sweep, asked_text, is_asked, read_sweep
from ima_dist.plans.trial_record import earlier_records, points_of
from ima_dist.results.candidates import best_text, rows_of_directory, rows_of_points, sweep_table
from ima_dist.results.cost import cost_numbers, cost_text, total
from ima_dist.rundir.curves import noise_key
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_text_atomic
from ima_dist.rundir.lease import held
from ima_dist.tracking import tables

ASKED = "sweep.yaml"
_DATA = ("data.dir", "data.download", "data.val_size")
_OPTIONS = ("workers", "cpus_per_worker", "device", "allow", *_DATA, "dtype", "autocast", "compile", "cuda_graphs")


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``; if trials failed, 1 after the others are done, or 2 if all are invalid."""
    words = sys.argv[1:] if argv is None else argv
    return guarded(_best, words[1:]) if words[:1] == ["best"] else guarded(_main, words, resumable=True)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP.yaml")
    parser.add_argument("--resume", metavar="DIR", help="continue the sweep in this directory")
    parser.add_argument("--scale", metavar="NAME", help="a smaller version that the file defines, e.g. small or tiny")
    parser.add_argument("--seeds", metavar="0,1,…", help="instead of those in the file")
    parser.add_argument("--out", metavar="DIR", help="directory for the results (default: runs/sweeps/NAME)")
    parser.add_argument("--trials", metavar="A,B,…", help="only these trials, here and without Ray Tune (see --list)")
    parser.add_argument("--list", action="store_true", help="print the command of each trial and exit")
    add_show_config(parser)
    add_notify(parser)
    add_options(parser, *_OPTIONS)
    arguments = parser.parse_args(argv)
    sweep, root = _asked(arguments)
    for note in sweep.notes:
        say(note)
    if arguments.show_config:
        names = arguments.trials.split(",") if arguments.trials else []
        return _show_config(sweep, _known(sweep, names), user_options(arguments))
    if arguments.list:
        return _list(sweep, root)
    if arguments.trials:
        return _here(sweep, root, arguments.trials.split(","))
    os.environ.pop(VARIABLE, None)  # the sweep tells, not each of its trials
    status = _run(sweep, root)
    if status != EXIT_REQUEUE:
        trials = {record["name"]: record.get("status") for record in earlier_records(root)}
        failed = sum(trial == "failed" for trial in trials.values())
        why = None if status == EXIT_DONE else f"{failed} of {len(trials)} trials failed" if failed else "it failed"
        notify(arguments.notify, "sweep", root, message=why, summary=trials)
    return status


def _asked(arguments: argparse.Namespace) -> tuple[Sweep, Path]:
    """The sweep, and the directory of its results."""
    options = user_options(arguments)
    seeds = tuple(listed(arguments.seeds, int, "--seeds must be whole numbers such as 0,1,2"))
    if not arguments.resume:
        if not arguments.sweep:
            raise ConfigError("Give a sweep file, such as jobs/sweep_moons.yaml, or continue one with --resume DIR.")
        sweep = read_sweep(arguments.sweep, arguments.scale, options, seeds)
        name = Path(arguments.sweep).stem + (f"-{arguments.scale}" if arguments.scale else "")
        root = absolute_output(arguments.out) if arguments.out else results_root() / "sweeps" / name
        _check_place(root)
        return sweep, root
    if arguments.sweep or arguments.scale or arguments.out:
        raise ConfigError("--resume DIR reads the sweep from DIR: leave out the file, --scale and --out.")
    root = existing(arguments.resume).absolute()
    if not (root / ASKED).exists():
        raise ConfigError(f"{root} is not the directory of a sweep: it has no {ASKED}, so check the path.")
    return read_sweep(root / ASKED, None, options, seeds), root


def _check_place(root: Path) -> None:
    """Raise ConfigError if a sweep in ``root`` would write over files of the user's."""
    asked, trials = root / ASKED, root / "trials"
    if asked.exists() and not is_asked(asked.read_text(encoding="utf-8", errors="replace")):
        raise ConfigError(f"{asked} was not written by a sweep: give another --out, or continue it with --resume.")
    if trials.exists() and not asked.exists():
        raise ConfigError(f"{trials} does not belong to a sweep: give another --out.")
    if tables.root_of(RunDir(root / "any"), results_root()) is None:
        tables.check_dataset(root)


def _list(sweep: Sweep, root: Path) -> int:
    if sweep.search == "optuna":
        raise ConfigError("With search: optuna the trials are chosen during the sweep, so there is nothing to list.")
    for name, (config, epochs) in sweep.runs.items():
        say(f"{name}: {train_command(config, root / name)}")
        if epochs != (config.epochs,):
            say(f"{name}: evaluated after epochs {', '.join(map(str, epochs))}")
    return EXIT_DONE


def _show_config(sweep: Sweep, names: list[str], options: dict[str, Any]) -> int:
    """Print the options of these trials, or of one of all, and what varies."""
    configs = {name: sweep.runs[name][0] for name in names} or {"one of the trials": sweep.any_point().config}
    for name, config in configs.items():
        say(f"[{name}]\n{config_text(config, options)}")
    varies = (f"{as_option(name)} {d.kind} of {', '.join(map(str, d.bounds))}" for name, d in sweep.space.items())
    say(f"The sweep varies {'; '.join(varies)}; seeds {', '.join(map(str, sweep.seeds))}.")
    return EXIT_DONE


def _known(sweep: Sweep, names: list[str]) -> list[str]:
    for name in names:
        if name not in sweep.runs:
            raise ConfigError(f"The sweep has no trial {name!r}{did_you_mean(name, sweep.runs)}: see --list.")
    return names


def _here(sweep: Sweep, root: Path, names: list[str]) -> int:
    """Run single trials of a sweep in this process, as the elements of a job array do."""
    names = _known(sweep, names)
    _prepare(sweep, root)
    for name in names:
        config, epochs = sweep.runs[name]
        status = run_commands(config, root / name, epochs)
        if status != EXIT_DONE:
            return status
    return EXIT_DONE


def _prepare(sweep: Sweep, root: Path) -> None:
    """Save what was asked, and make a place for the data set of results unless a directory above has one."""
    write_text_atomic(root / ASKED, asked_text(sweep))
    if tables.root_of(RunDir(root / "any"), results_root()) is None:
        tables.make_dataset(root)


def _pending(sweep: Sweep, root: Path) -> bool:
    """Whether anything is left to do, so that a cluster is needed."""
    commands = (next_command(config, root / name, epochs) for name, (config, epochs) in sweep.runs.items())
    return sweep.search == "optuna" or any(commands)


def _run(sweep: Sweep, root: Path) -> int:
    status = _run_trials(sweep, root) if _pending(sweep, root) else EXIT_DONE
    points = sweep.points or points_of(sweep, earlier_records(root))
    say(f"\n{sweep.title}\n{sweep_table(rows_of_points(points, root))}")
    say(f"\nMean accuracy ± standard deviation over seeds. Results: {shown(root)}")
    cost = cost_text(
        total([cost_numbers(RunDir(root / r["name"]).summary().get("cost")) for r in earlier_records(root)])
    )
    if cost:
        say(f"Cost of all runs: {cost}.")
    say(f"Choose with: python -m ima_dist.sweep best {shown(root)} --min-clean 0.90")
    if status == EXIT_DONE:
        return _conclude(points, root)
    say_interrupted(AGAIN)
    return status


def _run_trials(sweep: Sweep, root: Path) -> int:
    """Run what is left on a Ray cluster. Exit status: EXIT_DONE also if trials failed."""
    check_inputs(sweep.any_point().config)
    root.mkdir(parents=True, exist_ok=True)
    with held(root / "lock"):
        _prepare(sweep, root)
        say(f"{sweep.title}: {_count(sweep)}. Results: {shown(root)}")
        set_environment()
        from ima_dist.launch.tune import run_sweep

        try:
            return EXIT_REQUEUE if run_sweep(sweep, root, say) else EXIT_DONE
        except RuntimeError as error:
            complain(f"error: {error}.")
            return EXIT_FAILED


def _count(sweep: Sweep) -> str:
    runs = len(sweep.runs)
    seeds = f" with {len(sweep.seeds)} seeds each" if len(sweep.seeds) > 1 else ""
    return f"{runs} run{'s' * (runs != 1)}" if runs else f"{sweep.samples} combinations{seeds}, chosen by Optuna"


def _conclude(points: Sequence[Point], root: Path) -> int:
    """Print which trials ASHA stopped and which failed; returns the exit status."""
    records = {record["name"]: record for record in earlier_records(root)}
    failed = {}
    for point in points:
        path = run_path(root, point.config)
        record = records.get(path.name, {})
        if record.get("status") == "stopped":
            say(f"Stopped by ASHA after epoch {record.get('epoch')}: {path.name}")
        elif record.get("status") == "failed":
            failed[path.name] = record
        elif next_command(point.config, path, (point.epoch,)) is not None:
            output = root / "trials" / f"{path.name}.txt"
            failed[path.name] = {"message": f"Its process ended without a message: see {output}", "code": EXIT_FAILED}
    for name, record in failed.items():
        complain(f"error: {name}: {record.get('message')}")
    if not failed:
        return EXIT_DONE
    invalid = all(record.get("code") == EXIT_INPUT for record in failed.values())
    return EXIT_INPUT if invalid and len(failed) == len({p.config.fingerprint() for p in points}) else EXIT_FAILED


def _best(argv: list[str]) -> int:
    """Choose among the finished runs in a directory."""
    about = "Choose among the finished runs in a directory."
    parser = OneLineParser(prog="python -m ima_dist.sweep best", description=about, allow_abbrev=False)
    parser.add_argument("directory", metavar="DIR", help="a directory that contains runs, of a sweep or others")
    parser.add_argument("--min-clean", type=float, required=True, metavar="A", help="lowest clean accuracy, 0 to 1")
    parser.add_argument("--noise", metavar="A,B,…", help="noise levels to average (default: area under the curve)")
    strictest = "default: the strictest attack that all runs were evaluated with"
    parser.add_argument("--attack", metavar="|".join(ATTACKS), help=strictest)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.min_clean <= 1:
        raise ConfigError(f"--min-clean must lie between 0 and 1, not {arguments.min_clean}.")
    attack = arguments.attack
    if attack is not None and attack not in ATTACKS:
        close = did_you_mean(attack, ATTACKS)
        raise ConfigError(f"--attack must be one of {', '.join(ATTACKS)}, not {attack!r}{close}.")
    noise = listed(arguments.noise, number, "--noise must be numbers such as 0.1,0.2")
    levels = tuple(sorted(set(map(noise_key, noise))))
    directory = existing(arguments.directory)
    rows, problems = rows_of_directory(directory)
    for problem in problems:
        complain(f"warning: {problem}")
    if not rows:
        raise ConfigError(f"{directory} contains no finished run: check the path.")
    say(best_text(rows, arguments.min_clean, levels, attack))
    return EXIT_DONE


if __name__ == "__main__":
    leave(main())

"""``python -m ima_dist.sweep jobs/SWEEP.yaml``: train and evaluate every combination that a sweep file asks for.

``python -m ima_dist.sweep best DIR --min-clean 0.90`` chooses among the results. The same command again, or
``--resume DIR``, continues a sweep: what has finished is not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ima_dist import evaluate, train
from ima_dist.cli.entry import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, guarded, say
from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.cli.paths import absolute_output, existing, results_root, shown
from ima_dist.cli.running import check_inputs
from ima_dist.config.attacks import ATTACKS
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.presets import train_command
from ima_dist.launch.cluster import set_environment
from ima_dist.plans.jobfile import run_path
from ima_dist.plans.pending import next_command
from ima_dist.plans.sweepfile import Point, Sweep, asked_text, read_sweep
from ima_dist.plans.trial_record import earlier_records
from ima_dist.results.candidates import best_text, rows_of_directory, rows_of_points, sweep_table
from ima_dist.rundir.curves import noise_key
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_text_atomic
from ima_dist.rundir.lease import held
from ima_dist.tracking import tables

ASKED = "sweep.yaml"
_OPTIONS = ("workers", "cpus_per_worker", "device", "data.dir", "data.download", "dtype", "autocast")


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``; 1 if a trial failed, after all others were done; 2 if all are faulty."""
    words = sys.argv[1:] if argv is None else argv
    return guarded(_best, words[1:]) if words[:1] == ["best"] else guarded(_main, words)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP.yaml")
    parser.add_argument("--resume", metavar="DIR", help="continue the sweep in this directory")
    parser.add_argument("--scale", metavar="NAME", help="a reduction that the file states, such as small or tiny")
    parser.add_argument("--seeds", metavar="0,1,…", help="in place of the file's")
    parser.add_argument("--out", metavar="DIR", help="where results go (default: runs/sweeps/NAME)")
    parser.add_argument("--trials", metavar="A,B,…", help="these trials only, here, without Ray Tune (see --list)")
    parser.add_argument("--list", action="store_true", help="print the command of each trial and do nothing")
    for name in _OPTIONS:
        add_options(parser, only=name)
    a = parser.parse_args(argv)
    options = user_options(a)
    seeds = _seeds(a.seeds)
    if a.resume:
        if a.sweep or a.scale or a.out:
            raise ConfigError("--resume DIR knows the sweep and its place: leave the file, --scale and --out out.")
        root = existing(a.resume).absolute()
        if not (root / ASKED).exists():
            raise ConfigError(f"{root} holds no sweep: it has no {ASKED}, so check the path.")
        sweep = read_sweep(root / ASKED, None, options, seeds)
    else:
        if not a.sweep:
            raise ConfigError("Name a sweep file, such as jobs/sweep_moons.yaml, or a sweep with --resume DIR.")
        sweep = read_sweep(a.sweep, a.scale, options, seeds)
        name = Path(a.sweep).stem + (f"-{a.scale}" if a.scale else "")
        root = absolute_output(a.out) if a.out else results_root() / "sweeps" / name
    for note in sweep.notes:
        say(note)
    if a.list:
        return _list(sweep, root)
    if a.trials:
        return _here(sweep, root, a.trials)
    return _run(sweep, root)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers such as 0,1,2, not {text!r}.") from None


def _list(sweep: Sweep, root: Path) -> int:
    if sweep.search == "optuna":
        raise ConfigError("search: optuna makes its trials as it goes, so there is nothing to list.")
    for name, (config, epochs) in sweep.runs.items():
        say(f"{name}: {train_command(config, root / name)}")
        if epochs != (config.epochs,):
            say(f"{name}: evaluated after epochs {', '.join(map(str, epochs))}")
    return EXIT_DONE


def _here(sweep: Sweep, root: Path, names: str) -> int:
    """Run single trials of a sweep in this process, as the elements of a job array do."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "ima_dist.train": train.main,
        "ima_dist.evaluate": evaluate.main,
    }
    for name in names.split(","):
        if name not in sweep.runs:
            raise ConfigError(f"The sweep has no trial {name!r}{did_you_mean(name, sweep.runs)}: see --list.")
    _prepare(sweep, root)
    for name in names.split(","):
        config, epochs = sweep.runs[name]
        last = None
        while (command := next_command(config, root / name, epochs)) is not None:
            if command == last:
                raise RuntimeError(f"{root / name} lacks results although its commands have ended")
            if last is not None and time.time() > float(os.environ.get("IMA_DIST_LAST_START") or "inf"):
                return EXIT_REQUEUE
            status = commands[command[0]](command[1])
            if status != EXIT_DONE:
                return status
            last = command
        say(f"{name} is finished.")
    return EXIT_DONE


def _prepare(sweep: Sweep, root: Path) -> None:
    """What was asked for, and a place for the data set of results, unless one above the sweep will hold it."""
    write_text_atomic(root / ASKED, asked_text(sweep))
    if tables.root_of(RunDir(root / "any"), results_root()) is None:
        tables.make_dataset(root)


def _pending(sweep: Sweep, root: Path) -> bool:
    """Whether anything is left to be done, so that a cluster is needed."""
    return sweep.search == "optuna" or any(
        next_command(config, root / name, epochs) is not None for name, (config, epochs) in sweep.runs.items()
    )


def _run(sweep: Sweep, root: Path) -> int:
    stopped = False
    if _pending(sweep, root):
        check_inputs(sweep.any_point().config)
        root.mkdir(parents=True, exist_ok=True)
        with held(root / "lock"):
            _prepare(sweep, root)
            say(f"{sweep.title}: {_count(sweep)}. Results: {shown(root)}")
            set_environment()
            from ima_dist.launch.tune import run_sweep

            stopped = run_sweep(sweep, root, say)
    points = sweep.points or _points_of_records(sweep, earlier_records(root))
    wanted = {run_path(Path(), point.config).name for point in points}
    records = {r["name"]: r for r in earlier_records(root) if r["name"] in wanted}
    say(f"\n{sweep.title}\n{sweep_table(rows_of_points(points, root))}")
    say(f"\nMean accuracy ± standard deviation over seeds. Results: {shown(root)}")
    say(f"Choose with: python -m ima_dist.sweep best {shown(root)} --min-clean 0.90")
    return _conclude(points, root, records, stopped)


def _conclude(points: Any, root: Path, records: dict[str, dict[str, Any]], stopped: bool) -> int:
    lost = "Its process has ended without a word"
    failed = {}
    for point in points:
        path = run_path(root, point.config)
        record = records.get(path.name, {})
        if record.get("status") == "stopped":
            say(f"Stopped by ASHA after epoch {record.get('epoch')}: {path.name}")
        elif record.get("status") == "failed":
            failed[path.name] = record
        elif not stopped and next_command(point.config, path, (point.epoch,)) is not None:
            failed[path.name] = {"message": f"{lost}: see {root / 'trials' / path.name}.txt", "code": EXIT_FAILED}
    if stopped:
        say("Interrupted. The same command continues.")
        return EXIT_REQUEUE
    for name, record in failed.items():
        print(f"error: {name}: {record.get('message')}", file=sys.stderr)
    if not failed:
        return EXIT_DONE
    faulty = all(record.get("code") == EXIT_INPUT for record in failed.values())
    return EXIT_INPUT if faulty and len(failed) == len({p.config.fingerprint() for p in points}) else EXIT_FAILED


def _count(sweep: Sweep) -> str:
    runs = len(sweep.runs)
    seeds = f" with {len(sweep.seeds)} seeds each" if len(sweep.seeds) > 1 else ""
    return f"{runs} run{'s' * (runs != 1)}" if runs else f"{sweep.samples} combinations{seeds}, chosen by Optuna"


def _points_of_records(sweep: Sweep, records: list[dict[str, Any]]) -> tuple[Point, ...]:
    """The combinations that an open search has asked for."""
    points = []
    for record in records:
        with contextlib.suppress(ConfigError, KeyError):
            if set(record["values"]) == set(sweep.space):
                points.append(sweep.point(record["values"], record["seed"]))
    return tuple(points)


def _best(argv: list[str]) -> int:
    parser = OneLineParser(
        prog="python -m ima_dist.sweep best",
        description="Choose among the finished runs in a directory.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="a directory that contains runs, of a sweep or others")
    parser.add_argument("--min-clean", type=float, required=True, metavar="A", help="least clean accuracy, 0 to 1")
    parser.add_argument("--noise", metavar="A,B,…", help="noise levels that count (default: area under the curve)")
    parser.add_argument(
        "--attack", metavar="|".join(ATTACKS), help="default: the strictest that all were attacked with"
    )
    a = parser.parse_args(argv)
    if not 0 <= a.min_clean <= 1:
        raise ConfigError(f"--min-clean must lie between 0 and 1, not {a.min_clean}.")
    if a.attack is not None and a.attack not in ATTACKS:
        raise ConfigError(
            f"--attack must be one of {', '.join(ATTACKS)}, not {a.attack!r}{did_you_mean(a.attack, ATTACKS)}."
        )
    try:
        levels = tuple(sorted({noise_key(float(part)) for part in (a.noise or "").split(",") if part.strip()}))
    except ValueError:
        raise ConfigError(f"--noise must be numbers such as 0.1,0.2, not {a.noise!r}.") from None
    directory = existing(a.directory)
    rows, problems = rows_of_directory(directory)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if not rows:
        raise ConfigError(f"{directory} holds no finished run: check the path.")
    say(best_text(rows, a.min_clean, levels, a.attack))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

"""``python -m ima_dist.job jobs/table02.yaml``: train and evaluate every row of one of the paper's tables.

A job file names a preset, options that all rows share, and a row for each row of the table, with its own
options. Runs are told apart by their configuration: a row that an earlier job has trained is not trained
again, and the same command continues what was interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from ima_dist import evaluate, train
from ima_dist.cli.entry import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, guarded, say
from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.cli.paths import absolute_output, results_root
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.presets import options_of, train_command
from ima_dist.config.schema import Config
from ima_dist.config.values import as_flags, with_options
from ima_dist.plans.jobfile import Job, read_job, run_path
from ima_dist.results.comparison import comparison_table
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``; 1 if a row failed, after all others were done; 2 if all are faulty."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.job", description=__doc__, allow_abbrev=False)
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument("--scale", metavar="NAME", help="a reduction that the file states, such as small or tiny")
    parser.add_argument("--rows", metavar="A,B,…", help="these rows only")
    parser.add_argument("--out", metavar="DIR", help="where the runs go (default: runs/jobs)")
    parser.add_argument("--list", action="store_true", help="print the command of each row and do nothing")
    for name in ("workers", "device", "data.dir", "data.download", "dtype", "autocast", "seed"):
        add_options(parser, only=name)
    arguments = parser.parse_args(argv)
    options = user_options(arguments)
    job = read_job(arguments.job, arguments.scale, options)
    root = Path(absolute_output(arguments.out)) if arguments.out else results_root() / "jobs"
    chosen = _chosen(job, arguments)
    if arguments.list:
        for name, config in chosen.items():
            say(f"{name}: {train_command(config, run_path(root, config))}")
        return EXIT_DONE
    failed: dict[str, int] = {}
    for name, config in chosen.items():
        say(f"\n[{name}]")
        status = _do_row(job, config, run_path(root, config))
        if status == EXIT_REQUEUE:
            say("Interrupted. The same command continues.")
            return EXIT_REQUEUE
        if status != EXIT_DONE:
            failed[name] = status
    runs = {name: Run(RunDir(run_path(root, config)), name) for name, config in chosen.items() if name not in failed}
    scale = f", scale {job.scale}" if job.scale else ""
    say(f"\n{job.title}{scale}\n{comparison_table(runs, job.table, job.epochs)}")
    if failed:
        print(f"error: These rows failed: {', '.join(failed)}; their messages stand above.", file=sys.stderr)
    if failed:
        return EXIT_INPUT if [*failed.values()] == [EXIT_INPUT] * len(chosen) else EXIT_FAILED
    return EXIT_DONE


def _chosen(job: Job, arguments: argparse.Namespace) -> dict[str, Config]:
    if not arguments.rows:
        return job.rows
    names = [part.strip() for part in arguments.rows.split(",")]
    for name in names:
        if name not in job.rows:
            raise ConfigError(
                f"{arguments.job} has no row {name!r}{did_you_mean(name, job.rows)}: it has {', '.join(job.rows)}."
            )
    return {name: job.rows[name] for name in names}


def _late() -> bool:
    """Whether the SLURM job that we are is so near its end that nothing more should be begun (Unix time)."""
    return time.time() > float(os.environ.get("IMA_DIST_LAST_START") or "inf")


def _do_row(job: Job, config: Config, path: Path) -> int:
    flags = as_flags(options_of(config))
    if (path / "config.yaml").exists():
        status = train.main(["--resume", str(path), *flags])
    else:
        status = train.main([config.preset, "--out", str(path), *flags])
    wanted: list[tuple[dict[str, Any], tuple[int, ...]]] = [(then, (config.epochs,)) for then in job.then]
    if job.epochs:
        wanted.append(({}, job.epochs))
    for options, epochs in wanted:
        if status == EXIT_DONE and not _evaluated(RunDir(path), with_options(config, options), epochs):
            if _late():
                return EXIT_REQUEUE
            again = ["--epochs", ",".join(map(str, epochs)), *as_flags(options)]
            status = evaluate.main([str(path), *again])
    return status


def _evaluated(run: RunDir, config: Config, epochs: tuple[int, ...]) -> bool:
    """Whether an earlier start of the job has done this evaluation."""
    most = config.eval.samples or sys.maxsize
    done = {(point.attack, point.epoch) for point in run.points() if point.samples <= most}
    return done >= {(attack, epoch) for attack in config.eval.attacks for epoch in epochs}


if __name__ == "__main__":
    sys.exit(main())

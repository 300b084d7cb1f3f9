"""``python -m ima_dist.job jobs/table02.yaml``: train and evaluate every row of one of the paper's tables.

A job file names a preset, options shared by all rows, and the rows of the table with options of their own. A run's
directory is named after its configuration, so a row that an earlier job has trained is not trained again, and the same
command continues a job that was interrupted.
"""

import argparse
import sys
from pathlib import Path

from ima_dist.cli.entry import absolute_output, guarded, leave, results_root, say
from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.cli.running import run_commands
from ima_dist.cli.show_config import add_show_config, config_text
from ima_dist.config.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, ConfigError, complain, did_you_mean
from ima_dist.config.presets import train_command
from ima_dist.config.schema import Config
from ima_dist.plans.jobfile import Job, read_job, run_path
from ima_dist.results.comparison import comparison_table
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``; if rows failed, 1 after the others are done, or 2 if all are invalid."""
    return guarded(_main, sys.argv[1:] if argv is None else argv, resumable=True)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.job", description=__doc__, allow_abbrev=False)
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument("--scale", metavar="NAME", help="a smaller version that the file defines, e.g. small or tiny")
    parser.add_argument("--rows", metavar="A,B,…", help="only these rows")
    parser.add_argument("--out", metavar="DIR", help="directory for the runs (default: runs/jobs)")
    parser.add_argument("--list", action="store_true", help="print the command of each row and exit")
    add_show_config(parser)
    add_options(
        parser,
        "workers",
        "device",
        "data.dir",
        "data.download",
        "data.val_size",
        "dtype",
        "autocast",
        "compile",
        "cuda_graphs",
        "seed",
    )
    arguments = parser.parse_args(argv)
    options = user_options(arguments)
    job = read_job(arguments.job, arguments.scale, options)
    root = absolute_output(arguments.out) if arguments.out else results_root() / "jobs"
    rows = _chosen(job, arguments)
    if arguments.show_config:
        say("\n\n".join(f"[{name}]\n{config_text(config, options)}" for name, config in rows.items()))
        return EXIT_DONE
    if arguments.list:
        for name, config in rows.items():
            say(f"{name}: {train_command(config, run_path(root, config))}")
        return EXIT_DONE
    return _run(job, rows, root)


def _chosen(job: Job, arguments: argparse.Namespace) -> dict[str, Config]:
    if not arguments.rows:
        return job.rows
    names = [part.strip() for part in arguments.rows.split(",")]
    for name in names:
        if name not in job.rows:
            close, known = did_you_mean(name, job.rows), ", ".join(job.rows)
            raise ConfigError(f"{arguments.job} has no row {name!r}{close}: it has {known}.")
    return {name: job.rows[name] for name in names}


def _run(job: Job, rows: dict[str, Config], root: Path) -> int:
    statuses: dict[str, int] = {}
    for name, config in rows.items():
        say(f"\n[{name}]")
        statuses[name] = run_commands(config, run_path(root, config), job.epochs or (config.epochs,), job.then)
        if statuses[name] == EXIT_REQUEUE:
            return EXIT_REQUEUE
    done = {name: Run(RunDir(run_path(root, rows[name])), name) for name, status in statuses.items() if not status}
    scale = f", scale {job.scale}" if job.scale else ""
    say(f"\n{job.title}{scale}\n{comparison_table(done, job.table, job.epochs)}")
    failed = [name for name in rows if name not in done]
    if not failed:
        return EXIT_DONE
    complain(f"error: These rows failed: {', '.join(failed)}; see their messages above.")
    return EXIT_INPUT if set(statuses.values()) == {EXIT_INPUT} else EXIT_FAILED


if __name__ == "__main__":
    leave(main())

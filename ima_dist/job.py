"""``python -m ima_dist.job jobs/table02.yaml``: train and evaluate every row of one of the paper's tables.

A job file names a preset, options that all rows share, and a row for each row of the table, with its own
options. Runs are told apart by their configuration: a row that an earlier job has trained is not trained
again, and the same command continues what was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ima_dist import config as configuration
from ima_dist import evaluate, train
from ima_dist.config import Config, ConfigError, did_you_mean
from ima_dist.presets import make_config, options_of, train_command
from ima_dist.results.comparison import comparison_table
from ima_dist.results.rundir import RunDir
from ima_dist.train import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, guarded, results_root, say, user_options


@dataclass(frozen=True)
class Job:
    """A job file, checked.

    title: what the table shows. table: its number in the paper, or None. rows: name, as in the paper's
    tables -> configuration. epochs: further epochs to evaluate (Tables 16 to 21). then: evaluations with
    other settings of all rows, as options of ima_dist.evaluate. scale: the name of the reduction, or None.
    """

    title: str
    table: int | None
    rows: dict[str, Config]
    epochs: tuple[int, ...] = ()
    then: tuple[dict[str, Any], ...] = ()
    scale: str | None = None


_KEYS = ("title", "table", "preset", "options", "rows", "epochs", "then", "scales")


def read_job(path: Path | str, scale: str | None = None, options: dict[str, Any] | None = None) -> Job:
    """The job in a file, with its ``scale`` (a name in the file's ``scales``) and then ``options`` on top.

    A scale's ``epochs`` also shrinks the epochs of Tables 16 to 21 in proportion, so that each stays the
    same share of the run; its ``then`` replaces entries of every further evaluation.
    Raises ConfigError naming the file and the entry.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}): check the path.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct it.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping with title, preset and rows.")
    for key in tree:
        if key not in _KEYS:
            raise ConfigError(f"{path} has an unknown entry {key!r}{did_you_mean(key, _KEYS)}.")
    for key in ("title", "preset", "rows"):
        if not tree.get(key):
            raise ConfigError(f"{path} lacks the entry {key!r}.")
    scales = tree.get("scales") or {}
    if scale is not None and scale not in scales:
        raise ConfigError(f"{path} has no scale {scale!r}: it has {', '.join(scales) or 'none'}.")
    reduced = {**(scales[scale] if scale else {}), **(options or {})}
    again = reduced.pop("then", {})
    rows, full = {}, {}
    for name, own in tree["rows"].items():
        try:
            given = {**(tree.get("options") or {}), **(own or {})}
            full[name] = make_config(tree["preset"], given)
            rows[str(name)] = make_config(tree["preset"], {**given, **reduced})
        except ConfigError as error:
            raise ConfigError(f"In {path}, row {name}: {error}") from None
    share = max(c.epochs for c in rows.values()) / max(c.epochs for c in full.values())
    epochs = tuple(sorted({max(1, round(e * share)) for e in tree.get("epochs") or ()}))
    then = tuple({f"eval.{k}": v for k, v in {**entry, **again}.items()} for entry in tree.get("then") or ())
    return Job(str(tree["title"]), tree.get("table"), rows, epochs, then, scale)


def run_path(root: Path, config: Config) -> Path:
    """Where the run of a configuration lies; rows of several tables share it."""
    return root / f"{config.preset}-{config.method}-{config.norm}-seed{config.seed}-{config.fingerprint()[:8]}"


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``; 1 if a row failed, after all others were done."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = configuration.OneLineParser(prog="python -m ima_dist.job", description=__doc__, allow_abbrev=False)
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument("--scale", metavar="NAME", help="a reduction that the file states, such as small or tiny")
    parser.add_argument("--rows", metavar="A,B,…", help="these rows only")
    parser.add_argument("--out", metavar="DIR", help="where the runs go (default: runs/jobs)")
    parser.add_argument("--list", action="store_true", help="print the command of each row and do nothing")
    for name in ("workers", "device", "data.dir", "data.download", "dtype"):
        configuration.add_options(parser, only=name)
    arguments = parser.parse_args(argv)
    options = user_options(arguments)
    job = read_job(arguments.job, arguments.scale, options)
    root = Path(train.absolute_output(arguments.out)) if arguments.out else results_root() / "jobs"
    chosen = _chosen(job, arguments)
    if arguments.list:
        for name, config in chosen.items():
            say(f"{name}: {train_command(config, run_path(root, config))}")
        return EXIT_DONE
    failed = []
    for name, config in chosen.items():
        say(f"\n[{name}]")
        status = _do_row(job, config, run_path(root, config))
        if status == EXIT_REQUEUE:
            say("Interrupted. The same command continues.")
            return EXIT_REQUEUE
        if status != EXIT_DONE:
            failed.append(name)
    runs = {name: RunDir(run_path(root, config)) for name, config in chosen.items() if name not in failed}
    scale = f", scale {job.scale}" if job.scale else ""
    say(f"\n{job.title}{scale}\n{comparison_table(runs, job.table, job.epochs)}")
    if failed:
        print(f"error: These rows failed: {', '.join(failed)}; their messages stand above.", file=sys.stderr)
    return EXIT_FAILED if failed else EXIT_DONE


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


def _do_row(job: Job, config: Config, path: Path) -> int:
    flags = configuration.as_flags(options_of(config))
    if (path / "config.yaml").exists():
        status = train.main(["--resume", str(path), *flags])
    else:
        status = train.main([config.preset, "--out", str(path), *flags])
    wanted: list[tuple[dict[str, Any], tuple[int, ...]]] = [(then, (config.epochs,)) for then in job.then]
    if job.epochs:
        wanted.append(({}, job.epochs))
    for options, epochs in wanted:
        if status == EXIT_DONE and not _evaluated(RunDir(path), configuration.replace(config, options), epochs):
            again = ["--epochs", ",".join(map(str, epochs)), *configuration.as_flags(options)]
            status = evaluate.main([str(path), *again])
    return status


def _evaluated(run: RunDir, config: Config, epochs: tuple[int, ...]) -> bool:
    """Whether an earlier start of the job has done this evaluation."""
    most = config.eval.samples or sys.maxsize
    done = {(c["attack"], c["epoch"]) for c in run.summary().get("curves", []) if c["samples"] <= most}
    return done >= {(attack, epoch) for attack in config.eval.attacks for epoch in epochs}


if __name__ == "__main__":
    sys.exit(main())

"""What a submission would run: the rows of a job file, or the trials of a sweep file, each as one SLURM job."""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import partitions
from cluster.partitions import Partition
from cluster.records import RECORDS, Row
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.schema import Config
from ima_dist.config.values import as_flags
from ima_dist.plans.jobfile import Job, find_file, read_job, run_path
from ima_dist.plans.sweepfile import Sweep, is_sweep, read_sweep


@dataclass(frozen=True)
class Plan:
    """A submission, checked. folder: where its records go. rows: one SLURM job each. at_once: how many run at a time.

    table: module and arguments of the command that shows the results. configs: of the runs. snapshot: whether jobs run
    a copy of the code. asks_cpus: whether the CPU was asked for, and not taken for want of GPUs.
    """

    name: str
    job_file: Path
    folder: Path
    partition: Partition
    nodes: int
    rows: list[Row]
    at_once: int
    table: list[str] = field(default_factory=list)
    configs: list[Config] = field(default_factory=list)
    snapshot: bool = True
    asks_cpus: bool = False


def plan(
    job_file: str | Path,
    partition: str,
    *,
    nodes: int = 1,
    rows: list[str] | None = None,
    seeds: list[int] | None = None,
    scale: str | None = None,
    at_once: int = 4,
    options: dict[str, Any] | None = None,
    one_job: bool = False,
    out: str | Path | None = None,
    records: str | Path = RECORDS,
    partitions_file: Path | None = None,
    snapshot: bool = True,
    **changes: Any,
) -> Plan:
    """Check everything that can be checked here and say what would be submitted; writes nothing.

    rows: names in the job file, or trials of a sweep (default: all). seeds: in place of the file's. options: of
    ima_dist.job, by dotted name. one_job: a sweep in one job. out: default runs/jobs, or runs/sweeps/NAME.
    snapshot: whether jobs run a copy of the code as it is now. changes: entries of the partition (account, qos, time in
    minutes, cards, …; sbatch is added to the partition's).
    Raises ConfigError.
    """
    if nodes < 1 or at_once < 1:
        raise ConfigError("--nodes and --at-once must be at least 1.")
    chosen = partitions.choose(partition, partitions_file, **changes).for_nodes(nodes, changes.get("cards"))
    asks_cpus = (options or {}).get("device") == "cpu"
    # Without a device a run that sees no card would use the CPU, for weeks.
    options = dict(options or {})
    options.setdefault("device", "cuda" if chosen.gpus(nodes) else "cpu")
    job_file = find_file(job_file)
    folder = _new_folder(Path(records).absolute(), job_file.stem)
    suffix = f"-{scale}" if scale else ""
    place = Path(out or (f"runs/sweeps/{job_file.stem}{suffix}" if is_sweep(job_file) else "runs/jobs")).absolute()
    # The copy, not the file: that may be edited before the job starts.
    words = [str(folder / "job.yaml"), "--out", str(place), *(["--scale", scale] if scale else [])]
    if is_sweep(job_file):
        words += [*(["--seeds", ",".join(map(str, seeds))] if seeds else []), *as_flags(options)]
        sweep = read_sweep(job_file, scale, options, tuple(seeds or ()) or None)
        configs = [point.config for point in (sweep.any_point(), *sweep.points)]
        found, table = _trials(sweep, words, place, rows, one_job), ["ima_dist.sweep", *words]
    elif one_job:
        raise ConfigError(f"{job_file} is not a sweep file: its rows are separate jobs, so leave --one-job out.")
    else:
        found, configs = [], []
        for given in [{**options, "seed": seed} for seed in seeds or ()] or [options]:
            job = read_job(job_file, scale, given)
            found += _job_rows(job_file, job, words, place, rows, given)
            configs += [job.rows[name] for name in rows or job.rows]
        table = ["ima_dist.job", *words, *as_flags(options)]
    _check_precision(configs, chosen)
    _check_directories(configs, options.get("data.dir"))
    twice = {row.run for row in found if [other.run for other in found].count(row.run) > 1}
    if twice:
        raise ConfigError(f"Two rows would write to {min(twice)}: leave one of them out with --rows.")
    return Plan(
        folder.name, job_file, folder, chosen, nodes, found, at_once, table, configs, snapshot, asks_cpus
    )  # fmt: skip


def _job_rows(
    job_file: Path, job: Job, words: list[str], place: Path, names: list[str] | None, options: dict[str, Any]
) -> list[Row]:
    """Rows of a job file that was read with these options. Raises ConfigError."""
    found = []
    for name in names or job.rows:
        if name not in job.rows:
            guess = did_you_mean(name, job.rows)
            raise ConfigError(f"{job_file} has no row {name!r}{guess}: it has {', '.join(job.rows)}.")
        label = re.sub(r"[^\w.+-]", "_", f"{name}-seed{options['seed']}" if "seed" in options else name)
        command = ["-m", "ima_dist.job", words[0], "--rows", name, *words[1:], *as_flags(options)]
        found.append(Row(label, command, str(run_path(place, job.rows[name]))))
    return found


def _check_directories(configs: Iterable[Config], given: str | None) -> None:
    """Raises ConfigError for a directory of data that is not here; a variable in ``given`` is expanded on the node."""
    for place in dict.fromkeys(c.data.dir for c in configs if c.data.dir and not c.data.download):
        if "$" in place and place != given:
            raise ConfigError(
                f"data.dir is {place} in the job file: give it as --data.dir, where variables are expanded."
            )
        if "$" not in place and not Path(place).expanduser().exists():
            raise ConfigError(
                f"--data.dir {place}: there is no such directory here. Name one that all nodes share, or, for one that "
                "exists only on nodes, write it with a variable ('$TMPDIR/images'), which is expanded there."
            )


def _check_precision(configs: Iterable[Config], partition: Partition) -> None:
    """Raises ConfigError for a precision that the partition's cards would have to emulate."""
    if not partition.has_bfloat16 and any(c.autocast == "bfloat16" and c.device != "cpu" for c in configs):
        raise ConfigError(
            f"The cards of partition {partition.name} have no bfloat16: use --autocast float16, "
            "or correct partitions.toml."
        )


def _trials(sweep: Sweep, words: list[str], out: Path, names: list[str] | None, one_job: bool) -> list[Row]:
    """A row for each trial of a sweep, or one for all. Raises ConfigError."""
    if one_job:
        if names:
            raise ConfigError("--one-job runs the whole sweep: leave --rows out.")
        return [Row("sweep", ["-m", "ima_dist.sweep", *words], str(out))]
    if sweep.search == "optuna":
        raise ConfigError("search: optuna chooses each trial from the results so far: submit it with --one-job.")
    if sweep.asha:
        raise ConfigError("asha compares trials while they run: submit the sweep with --one-job.")
    for name in names or ():
        if name not in sweep.runs:
            raise ConfigError(f"The sweep has no trial {name!r}{did_you_mean(name, sweep.runs)}: see --dry-run.")
    return [
        Row(name, ["-m", "ima_dist.sweep", *words, "--trials", name], str(out / name)) for name in names or sweep.runs
    ]


def _new_folder(records: Path, stem: str) -> Path:
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(records / name for name in names if not (records / name).exists())

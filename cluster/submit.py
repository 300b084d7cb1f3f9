"""``python -m cluster.submit jobs/table11.yaml --partition v100 --nodes 4``: run a job or sweep file under SLURM.

Each row of the file (and each of --seeds), or each trial of a sweep, becomes one SLURM job of an array. In each a Ray
cluster starts on its nodes, ``ima_dist.job`` or ``ima_dist.sweep`` runs the row, and everything stops again. With
--one-job a sweep is one job, whose nodes are one Ray cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster import partitions, slurm
from cluster.partitions import Partition
from cluster.records import Row, RowRecord, write_private
from cluster.task import Task
from ima_dist.cli.entry import EXIT_DONE, EXIT_FAILED, guarded
from ima_dist.cli.parser import OneLineParser, add_options, given_options
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.schema import Config
from ima_dist.config.values import as_flags
from ima_dist.plans.jobfile import read_job, run_path
from ima_dist.plans.sweepfile import Sweep, is_sweep, read_sweep
from ima_dist.rundir.files import read_json

RECORDS = Path("runs/cluster")
# Passed on to ima_dist.job or ima_dist.sweep for every row.
RUN_OPTIONS = ("workers", "cpus_per_worker", "device", "data.dir", "data.download", "dtype", "autocast")
_LOOK_EVERY = 1.0
# After a job has left SLURM's queue its result file may take this long to be seen on shared storage.
_FILE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What is to be submitted. folder: where its records go; rows: one SLURM job each; see ``plan``.

    table: module and words of the command that shows the results.
    """

    name: str
    job_file: Path
    folder: Path
    partition: Partition
    nodes: int
    rows: list[Row]
    at_once: int
    table: list[str] = field(default_factory=list)

    def sbatch(self) -> dict[str, Any]:
        """submitit's parameters, from which it writes the file that sbatch gets."""
        p = self.partition
        cpus = p.cards * p.cpus_per_card
        optional = {"mem": p.memory, "account": p.account, "qos": p.qos, "constraint": p.constraint}
        further = {"requeue": True, **({"reservation": p.reservation} if p.reservation else {}), **p.sbatch}
        return {
            "job_name": self.name,
            "partition": p.partition,
            "nodes": self.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "time": p.time,
            "signal_delay_s": p.notice,
            **({"gres": f"{p.gres}:{p.cards}"} if p.gres else {}),
            **{key: value for key, value in optional.items() if value is not None},
            **({"setup": p.setup} if p.setup else {}),
            "array_parallelism": self.at_once,
            "additional_parameters": further,
            # srun does not take the CPUs of a task from sbatch since SLURM 22.05.
            "srun_args": [f"--cpus-per-task={cpus}", *p.srun],
            "stderr_to_stdout": True,
        }

    def text(self) -> str:
        """The file that sbatch gets."""
        from submitit.slurm import slurm as backend

        python = self.partition.python or shlex.quote(sys.executable)
        return backend._make_sbatch_string(
            command=f"{python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}",
            folder=self.folder,
            map_count=len(self.rows) if len(self.rows) > 1 else None,
            **self.sbatch(),
        )


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
    **changes: Any,
) -> Plan:
    """Check everything that can be checked here and say what would be submitted; writes nothing.

    rows: names in the job file, or trials of a sweep (default: all). seeds: in place of the file's. options: of
    ima_dist.job, by dotted name. one_job: a sweep in one job. out: default runs/jobs, or runs/sweeps/NAME.
    changes: entries of the partition (account, qos, time in minutes, cards, …).
    Raises ConfigError.
    """
    if nodes < 1 or at_once < 1:
        raise ConfigError("--nodes and --at-once must be at least 1.")
    chosen = partitions.choose(partition, partitions_file, **changes)
    options = dict(options or {})
    # Left to itself, a run whose cards are not to be seen would take the CPU, for weeks.
    options.setdefault("device", "cuda" if chosen.gres else "cpu")
    job_file = Path(job_file)
    folder = _new_folder(Path(records).absolute(), job_file.stem)
    scaled = ["--scale", scale] if scale else []
    if is_sweep(job_file):
        place = Path(out or Path("runs/sweeps", job_file.stem + (f"-{scale}" if scale else ""))).absolute()
        words = [str(folder / "job.yaml"), "--out", str(place), *scaled]
        words += [*(["--seeds", ",".join(map(str, seeds))] if seeds else []), *as_flags(options)]
        sweep = read_sweep(job_file, scale, options, tuple(seeds or ()) or None)
        _check_precision((point.config for point in (sweep.any_point(), *sweep.points)), chosen)
        found = _trials(sweep, words, place, rows, one_job)
        return Plan(folder.name, job_file, folder, chosen, nodes, found, at_once, ["ima_dist.sweep", *words])
    if one_job:
        raise ConfigError(f"{job_file} is no sweep file: its rows are jobs of their own, so leave --one-job out.")
    place = Path(out or "runs/jobs").absolute()
    found = []
    for seed in seeds or (None,):
        given = {**options, **({} if seed is None else {"seed": seed})}
        job = read_job(job_file, scale, given)
        for name in rows or job.rows:
            if name not in job.rows:
                raise ConfigError(
                    f"{job_file} has no row {name!r}{did_you_mean(name, job.rows)}: it has {', '.join(job.rows)}."
                )
            _check_precision([job.rows[name]], chosen)
            # The job file as it is now: it may be edited before the job starts.
            words = ["-m", "ima_dist.job", str(folder / "job.yaml"), "--rows", name, "--out", str(place)]
            words += [*scaled, *as_flags(given)]
            label = re.sub(r"[^\w.+-]", "_", name if seed is None else f"{name}-seed{seed}")
            found.append(Row(label, words, str(run_path(place, job.rows[name]))))
    twice = {row.run for row in found if [other.run for other in found].count(row.run) > 1}
    if twice:
        raise ConfigError(f"Two rows would write to {min(twice)}: leave one of them out with --rows.")
    table = ["ima_dist.job", str(folder / "job.yaml"), "--out", str(place), *scaled, *as_flags(options)]
    return Plan(folder.name, job_file, folder, chosen, nodes, found, at_once, table)


def _check_precision(configs: Iterable[Config], partition: Partition) -> None:
    """Raises ConfigError for a precision that the partition's cards would have to emulate."""
    if not partition.has_bfloat16 and any(c.autocast == "bfloat16" and c.device != "cpu" for c in configs):
        raise ConfigError(
            f"The cards of partition {partition.name} have no bfloat16: say --autocast float16, "
            "or correct partitions.toml."
        )


def _trials(sweep: Sweep, words: list[str], out: Path, names: list[str] | None, one_job: bool) -> list[Row]:
    """A row for each trial of a sweep, or one for all. Raises ConfigError."""
    if one_job:
        if names:
            raise ConfigError("--one-job runs the whole sweep: leave --rows out.")
        return [Row("sweep", ["-m", "ima_dist.sweep", *words], str(out))]
    if sweep.search == "optuna":
        raise ConfigError("search: optuna makes its trials as it goes: submit it with --one-job.")
    if sweep.asha:
        raise ConfigError("asha compares trials while they run: submit the sweep with --one-job.")
    for name in names or ():
        if name not in sweep.runs:
            raise ConfigError(f"The sweep has no trial {name!r}{did_you_mean(name, sweep.runs)}: see --dry-run.")
    return [
        Row(name, ["-m", "ima_dist.sweep", *words, "--trials", name], str(out / name)) for name in names or sweep.runs
    ]


def submit(plan: Plan) -> list[Any]:
    """Hand the plan to SLURM; the submitit jobs, one for each row. Raises ConfigError if SLURM refuses."""
    import submitit
    from submitit.core.utils import FailedJobError

    slurm.command("sinfo", "--version")
    os.makedirs(plan.folder, mode=0o700)
    shutil.copyfile(plan.job_file, plan.folder / "job.yaml")
    # submitit counts starts; ours end when they no longer get on.
    executor = submitit.SlurmExecutor(plan.folder, max_num_timeout=10_000, python=plan.partition.python)
    executor.update_parameters(**plan.sbatch())
    p, now = plan.partition, time.time()
    tasks = [Task(plan.folder, row, now, p.notice, p.join_timeout, p.interface, p.temp) for row in plan.rows]
    try:
        # submitit prints sbatch's complaint, which is also in its exception.
        with contextlib.redirect_stderr(io.StringIO()):
            if len(tasks) == 1:
                jobs = [executor.submit(tasks[0])]
            else:
                with executor.batch():
                    jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        shutil.rmtree(plan.folder)
        raise ConfigError(f"sbatch refused the job: {' '.join(str(error).split())}.") from None
    write_private(
        plan.folder / "job.json",
        {
            "name": plan.name,
            "submitted": now,
            "partition": p.partition,
            "nodes": plan.nodes,
            "rows": [{**asdict(row), "id": job.job_id} for row, job in zip(plan.rows, jobs, strict=True)],
            "table": plan.table,
        },
    )
    return jobs


def wait(folder: Path, on_change: Any = lambda row, state: None) -> dict[str, dict[str, Any]]:
    """Wait until every row has a result, or has left SLURM without one; row -> {"status", "message", "run"}.

    Works without accounting. ``on_change`` is called with a row's name and its new state.
    """
    rows = (read_json(folder / "job.json") or {})["rows"]
    results: dict[str, dict[str, Any]] = {}
    states: dict[str, str] = {}
    gone: dict[str, float] = {}
    while True:
        queue = slurm.queue()
        for row in rows:
            name, held = row["name"], queue.get(row["id"])
            state = held["state"] if held else "ended"
            if name not in results:
                result = RowRecord(folder, name).result()
                if held:
                    gone.pop(name, None)
                elif result is None and time.monotonic() - gone.setdefault(name, time.monotonic()) > _FILE_SECONDS:
                    result = {"status": EXIT_FAILED, "message": _no_result(folder, row)}
                if result is not None:
                    results[name] = {"run": row["run"], **result}
                    state = "finished" if result["status"] == EXIT_DONE else f"ended: {result['message']}"
                if states.get(name) != state:
                    states[name] = state
                    on_change(name, state)
        if len(results) == len(rows):
            return results
        time.sleep(_LOOK_EVERY)


def _no_result(folder: Path, row: dict[str, Any]) -> str:
    output, log = RowRecord(folder, row["name"]).output, folder / f"{row['id']}_0_log.out"
    # What failed before the row's own output began is in submitit's.
    where = output if output.exists() or not log.exists() else log
    return f"it left SLURM without a result: see {where}"


def _new_folder(records: Path, stem: str) -> Path:
    number, name = 1, stem
    while (records / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return records / name


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 submitted (with --watch: all rows finished), 2 input at fault, else that of a row."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(
        prog="python -m cluster.submit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument("--partition", required=True, metavar="NAME", help="as described in partitions.toml")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of each row (default: 1)")
    parser.add_argument("--rows", metavar="A,B,…", help="these rows, or trials of a sweep, only")
    parser.add_argument("--seeds", metavar="0,1,…", help="each row once with each of these seeds")
    parser.add_argument("--scale", metavar="NAME", help="a reduction that the job file states")
    parser.add_argument(
        "--at-once", type=int, default=4, metavar="N", help="rows that run at the same time (default 4)"
    )
    parser.add_argument("--one-job", action="store_true", help="a sweep as one job, whose nodes are one Ray cluster")
    parser.add_argument("--out", metavar="DIR", help="where the runs go (default: runs/jobs, or runs/sweeps/NAME)")
    parser.add_argument("--records", default=RECORDS, metavar="DIR", help=f"where logs go (default: {RECORDS})")
    parser.add_argument("--partitions", type=Path, metavar="FILE", help=f"default: {partitions.OWN_FILE}, if there")
    for name in ("account", "qos", "constraint", "reservation"):
        parser.add_argument(f"--{name}", metavar="NAME", help="in place of partitions.toml's")
    parser.add_argument("--time", metavar="LIMIT", help="longest time of one start, as for sbatch")
    parser.add_argument("--cards", type=int, metavar="N", help="cards of each node")
    parser.add_argument("--dry-run", action="store_true", help="print what sbatch would get, and do nothing")
    parser.add_argument("--watch", action="store_true", help="wait for the end, then print the table")
    for name in RUN_OPTIONS:
        add_options(parser, only=name)
    a = parser.parse_args(argv)
    options = given_options(a)
    if "data.dir" in options:
        options["data.dir"] = str(Path(options["data.dir"]).absolute())
    planned = plan(
        a.job,
        a.partition,
        nodes=a.nodes,
        rows=_names(a.rows),
        seeds=[_whole(word) for word in _names(a.seeds) or []] or None,
        scale=a.scale,
        at_once=a.at_once,
        options=options,
        one_job=a.one_job,
        out=a.out,
        records=a.records,
        partitions_file=a.partitions,
        account=a.account,
        qos=a.qos,
        constraint=a.constraint,
        reservation=a.reservation,
        time=None if a.time is None else partitions.minutes(a.time),
        cards=a.cards,
    )
    if a.dry_run:
        print(planned.text())
        for row in planned.rows:
            print(f"# {row.name}: {shlex.join(['python', *row.command])}")
        return EXIT_DONE
    jobs = submit(planned)
    print(f"{planned.name}: submitted as {', '.join(job.job_id for job in jobs)}; see python -m cluster.status")
    return _watch(planned.folder) if a.watch else EXIT_DONE


def _watch(folder: Path) -> int:
    results = wait(folder, lambda row, state: print(f"{time.strftime('%H:%M:%S')} {row}: {state}", flush=True))
    worst = max(result["status"] for result in results.values())
    if worst == EXIT_DONE:
        import subprocess

        module, *table = (read_json(folder / "job.json") or {})["table"]
        if module == "ima_dist.sweep":
            # Everything is there, so this shows the table and does nothing.
            return subprocess.run([sys.executable, "-m", module, *table], check=False).returncode
        rows = ",".join(dict.fromkeys(_option(row["command"], "--rows") for row in _rows(folder)))
        seeds = dict.fromkeys(_option(row["command"], "--seed") for row in _rows(folder))
        for seed in seeds:
            words = [*table, "--rows", rows, *(["--seed", seed] if seed else [])]
            subprocess.run([sys.executable, "-m", module, *words], check=False)
    return worst


def _rows(folder: Path) -> list[dict[str, Any]]:
    return list((read_json(folder / "job.json") or {})["rows"])


def _option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words else ""


def _names(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def _whole(word: str) -> int:
    if not word.isdigit():
        raise ConfigError(f"--seeds must be whole numbers, not {word!r}.")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())

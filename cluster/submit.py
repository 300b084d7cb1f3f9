"""``python -m cluster.submit jobs/table11.yaml --partition v100 --nodes 4``: run a job or sweep file under SLURM.

Each row of the file (and each of --seeds), or each trial of a sweep, becomes one SLURM job of an array. In each job a
Ray cluster starts on its nodes, ``ima_dist.job`` or ``ima_dist.sweep`` runs the row, and everything stops again. With
--one-job a sweep is one job, whose nodes form one Ray cluster.
"""

import argparse
import contextlib
import io
import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import partitions, slurm
from cluster.plan import Plan
from cluster.plan import plan as plan
from cluster.records import RECORDS, write_private
from cluster.task import Task
from cluster.watch import wait as wait
from cluster.watch import watch
from ima_dist.cli.entry import guarded
from ima_dist.cli.parser import add_options, cluster_parser, listed, user_options
from ima_dist.config.errors import EXIT_DONE, ConfigError

# Passed on to ima_dist.job or ima_dist.sweep for every row.
RUN_OPTIONS = (
    "workers",
    "cpus_per_worker",
    "device",
    "data.dir",
    "data.download",
    "data.val_size",
    "dtype",
    "autocast",
)
_OVERRIDES = ("account", "qos", "constraint", "reservation")


def sbatch_options(plan: Plan) -> dict[str, Any]:
    """submitit's parameters, from which it writes the file that sbatch gets."""
    p = plan.partition
    cpus = p.cards * p.cpus_per_card
    optional = {"mem": p.memory, "account": p.account, "qos": p.qos, "constraint": p.constraint}
    further = {"requeue": True, **({"reservation": p.reservation} if p.reservation else {}), **p.sbatch}
    return {
        "job_name": plan.name,
        "partition": p.partition,
        "nodes": plan.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "time": p.time,
        "signal_delay_s": p.notice,
        **({"gres": f"{p.gres}:{p.cards}"} if p.gres else {}),
        **{key: value for key, value in optional.items() if value is not None},
        **({"setup": list(p.setup)} if p.setup else {}),
        "array_parallelism": plan.at_once,
        "additional_parameters": further,
        # srun does not take the CPUs of a task from sbatch since SLURM 22.05.
        "srun_args": [f"--cpus-per-task={cpus}", *p.srun],
        "stderr_to_stdout": True,
    }


def script(plan: Plan) -> str:
    """The file that sbatch would get."""
    # The one private part of submitit that we use: it has no public way to show the file without submitting it.
    from submitit.slurm.slurm import _make_sbatch_string

    python = plan.partition.python or shlex.quote(sys.executable)
    return _make_sbatch_string(
        command=f"{python} -u -m submitit.core._submit {shlex.quote(str(plan.folder))}",
        folder=plan.folder,
        map_count=len(plan.rows) if len(plan.rows) > 1 else None,
        **sbatch_options(plan),
    )


def submit(plan: Plan) -> list[Any]:
    """Hand the plan to SLURM; the submitit jobs, one for each row. Raises ConfigError if SLURM refuses."""
    import submitit
    from submitit.core.utils import FailedJobError

    slurm.command("sinfo", "--version")
    os.makedirs(plan.folder, mode=0o700)
    shutil.copyfile(plan.job_file, plan.folder / "job.yaml")
    executor = submitit.SlurmExecutor(plan.folder, python=plan.partition.python)
    executor.update_parameters(**sbatch_options(plan))
    p, now = plan.partition, time.time()
    tasks = [Task(plan.folder, row, now, p.notice, p.join_timeout, p.interface, p.temp) for row in plan.rows]
    try:
        # submitit prints sbatch's complaint, which is also in its exception. A single job is no array.
        together = executor.batch() if len(tasks) > 1 else contextlib.nullcontext()
        with contextlib.redirect_stderr(io.StringIO()), together:
            jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        shutil.rmtree(plan.folder)
        raise ConfigError(f"sbatch refused the job: {' '.join(str(error).split())}.") from None
    rows = [{**asdict(row), "id": job.job_id} for row, job in zip(plan.rows, jobs, strict=True)]
    said = {"name": plan.name, "submitted": now, "partition": p.partition, "nodes": plan.nodes}
    write_private(plan.folder / "job.json", {**said, "rows": rows, "table": plan.table})
    return jobs


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 submitted (with --watch: all rows finished), 2 input at fault, else that of a row."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = cluster_parser("submit", __doc__)
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument("--partition", required=True, metavar="NAME", help="as described in partitions.toml")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes per row (default: 1)")
    parser.add_argument("--rows", metavar="A,B,…", help="only these rows, or trials of a sweep")
    parser.add_argument("--seeds", metavar="0,1,…", help="run each row once with each of these seeds")
    parser.add_argument("--scale", metavar="NAME", help="a reduction that the job file defines")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="rows that run in parallel (default: 4)")
    parser.add_argument("--one-job", action="store_true", help="a sweep as one job, whose nodes form one Ray cluster")
    parser.add_argument("--out", metavar="DIR", help="where the runs go (default: runs/jobs, or runs/sweeps/NAME)")
    parser.add_argument("--records", default=RECORDS, metavar="DIR", help=f"where logs go (default: {RECORDS})")
    parser.add_argument("--partitions", type=Path, metavar="FILE", help=f"default: {partitions.OWN_FILE}, if it exists")
    for name in _OVERRIDES:
        parser.add_argument(f"--{name}", metavar="NAME", help="overrides partitions.toml")
    parser.add_argument("--time", metavar="LIMIT", help="time limit of each start, as for sbatch")
    parser.add_argument("--cards", type=int, metavar="N", help="cards per node")
    parser.add_argument("--dry-run", action="store_true", help="print what sbatch would get, and submit nothing")
    parser.add_argument("--watch", action="store_true", help="wait until all rows have ended, then print the table")
    add_options(parser, *RUN_OPTIONS)
    return parser


def _main(argv: list[str]) -> int:
    a = _parser().parse_args(argv)
    planned = plan(
        a.job,
        a.partition,
        nodes=a.nodes,
        rows=_names(a.rows),
        seeds=listed(a.seeds, int, "--seeds must be whole numbers"),
        scale=a.scale,
        at_once=a.at_once,
        options=user_options(a),
        one_job=a.one_job,
        out=a.out,
        records=a.records,
        partitions_file=a.partitions,
        **{name: getattr(a, name) for name in _OVERRIDES},
        time=None if a.time is None else partitions.minutes(a.time),
        cards=a.cards,
    )
    if a.dry_run:
        print(script(planned))
        for row in planned.rows:
            print(f"# {row.name}: {shlex.join(['python', *row.command])}")
        return EXIT_DONE
    jobs = submit(planned)
    print(f"{planned.name}: submitted as {', '.join(job.job_id for job in jobs)}; see python -m cluster.status")
    return watch(planned.folder) if a.watch else EXIT_DONE


def _names(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


if __name__ == "__main__":
    sys.exit(main())

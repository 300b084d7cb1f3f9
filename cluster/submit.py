"""``python -m cluster.submit jobs/table11.yaml --partition v100 --nodes 4``: run a job or sweep file under SLURM.

Each row of the file (and each of --seeds), or each trial of a sweep, becomes one SLURM job of an array. In each job a
Ray cluster starts on its nodes, ``ima_dist.job`` or ``ima_dist.sweep`` runs the row, and everything stops again. With
--one-job a sweep is one job, whose nodes form one Ray cluster.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from cluster import directives, partitions, ready, sbatch, slurm, snapshot
from cluster.plan import Plan
from cluster.plan import plan as plan
from cluster.records import RECORDS
from cluster.submission import Submission, begin, unfinished
from cluster.watch import add_ask_every, rows_of, watch
from cluster.watch import wait as wait
from ima_dist.cli.entry import guarded
from ima_dist.cli.parser import add_options, cluster_parser, listed, user_options
from ima_dist.config.errors import EXIT_DONE, ConfigError
from ima_dist.rundir.files import read_json

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


def script(plan: Plan) -> str:
    """The file that sbatch would get, for all rows in one array."""
    exports = snapshot.exports(str(plan.folder / "code"), Path.cwd()) if plan.snapshot else []
    return sbatch.job_script(
        plan.partition, plan.nodes, plan.name, plan.folder, len(plan.rows), plan.at_once, exports=exports
    )


def submit(plan: Plan) -> list[Any]:
    """Hand the plan to SLURM; the submitit jobs, one for each row that SLURM takes now.

    Raises ConfigError if the data are missing or SLURM refuses.
    """
    from submitit import SlurmJob

    begun = start(plan)
    jobs = [row["id"] for row in rows_of(begun.plan.folder) if row["id"]]
    return [SlurmJob(begun.plan.folder, job, list(range(plan.nodes))) for job in jobs]


def start(plan: Plan) -> Submission:
    """Submit what SLURM takes now, of a new submission or of one that it has not taken whole. Raises ConfigError."""
    slurm.command("sinfo", "--version")
    before = unfinished(plan)
    if before is not None:
        begun, rows, held = Submission(before), rows_of(before.folder), slurm.queue()
        begun.send([row["name"] for row in rows if row["id"] and row["id"] not in held])
        return begun
    ready.check_gpus(plan)
    ready.check_data(plan)
    begun = begin(plan)
    try:
        begun.send()
    except ConfigError:
        shutil.rmtree(plan.folder)
        raise
    return begun


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
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="KEY=VALUE",
        help="option of sbatch (repeatable), such as mail-type=END; KEY= leaves one out, KEY alone has no value",
    )  # fmt: skip
    parser.add_argument(
        "--no-snapshot", action="store_true", help="jobs run the checkout, not a copy of it as it is now"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what sbatch would get, and submit nothing")
    parser.add_argument("--watch", action="store_true", help="wait until all rows have ended, then print the table")
    add_ask_every(parser)
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
        sbatch=directives.parse_words(a.sbatch),
        snapshot=not a.no_snapshot,
    )
    if a.dry_run:
        print(script(planned))
        for row in planned.rows:
            print(f"# {row.name}: {shlex.join(['python', *row.command])}")
        return EXIT_DONE
    begun = start(planned)
    _report(begun)
    return watch(begun, a.ask_every) if a.watch else EXIT_DONE


def _report(begun: Submission) -> None:
    """Say what was submitted, what is held back, and which code runs."""
    name, folder = begun.plan.name, begun.plan.folder
    arrays = dict.fromkeys(row["id"].split("_")[0] for row in rows_of(folder) if row["id"])
    print(f"{name}: submitted as {', '.join(arrays)}; see python -m cluster.status {name}")
    if held := begun.held_back():
        print(
            f"{len(held)} of {len(begun.plan.rows)} rows are held back ({begun.refusal.rstrip('.')}): leave --watch "
            "running, or give the same command again later, to submit them."
        )
    left = ((read_json(folder / "job.json") or {}).get("code") or {}).get("in_place")
    if left:
        print(f"Not copied, because they use __file__: {', '.join(left)}. Do not change them while jobs wait.")


def _names(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


if __name__ == "__main__":
    sys.exit(main())

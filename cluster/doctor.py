"""``python -m cluster.doctor [--partition v100 [--on-node]]``: is this cluster fit for our jobs?

Prints one line per check: ok, a warning, or a failure and what to do about it. --on-node also checks nodes of the
partition, in a short job that is made as all jobs are (or in the allocation in which it is started). Exit status 1 if
any check fails.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from cluster import checks, directives, partitions, ray_node, sbatch, slurm
from cluster.checks import FAILURE, OK, Finding, run_check, skew
from cluster.partitions import Partition
from cluster.records import RECORDS
from ima_dist.cli.entry import guarded
from ima_dist.cli.parser import cluster_parser
from ima_dist.config.errors import ConfigError

_ALLOCATION_SECONDS = 600
_ROOT = Path(__file__).parent.parent


def node_findings(partition: Partition, directory: Path, probe: str, others: list[str]) -> list[Finding]:
    """Check one node of an allocation, from there."""
    towards = slurm.node_address(others[0]) if others else None

    def shared() -> tuple[str, str]:
        if not (directory / probe).exists():
            return FAILURE, f"{directory} is not the login node's: submit from a directory that all nodes share."
        return checks.directory_writable(directory)

    def cards() -> tuple[str, str]:
        return checks.driver_and_cards(partition.cards) if partition.gpus(1) else (OK, "none")

    return [
        run_check("shared directory", shared),
        run_check("socket path", lambda: checks.socket_path(partition, on_node=True)),
        run_check("disk space", lambda: checks.disk_space(Path(ray_node.temporary_base(partition.temp)))),
        run_check("ports", checks.ports),
        run_check("interface", lambda: checks.interface(towards, partition.interface)),
        run_check("requeue", checks.requeue),
        run_check("internet", checks.internet),
        run_check("driver and cards", cards),
        run_check("torch", lambda: checks.torch_fits(partition.compute_capability)),
    ]


def login_findings(partition: Partition | None, directory: Path) -> list[Finding]:
    """Check what can be seen from the login node."""
    found = [run_check("SLURM", checks.reachable)]
    if found[0].level != FAILURE:
        found += [run_check("accounting", checks.accounting), run_check("grace", checks.grace)]
        if partition is not None:
            found.append(run_check("partition", lambda: checks.partition_exists(partition)))
            if found[-1].level != FAILURE:
                found.append(run_check("cards", lambda: checks.cards_exist(partition)))
                found.append(run_check("limits", lambda: checks.limits(partition)))
    return [
        *found,
        run_check("directory", lambda: checks.directory_writable(directory)),
        run_check("disk space", lambda: checks.disk_space(directory)),
        run_check("clock", lambda: checks.file_clock(directory)),
        run_check("socket path", lambda: checks.socket_path(partition)),
        run_check("ports", checks.ports),
        run_check("torch", lambda: checks.torch_fits(partition.compute_capability if partition else None)),
    ]


def on_nodes(partition: Partition, directory: Path, nodes: int, file: Path | None) -> list[Finding]:
    """Check ``nodes`` nodes of the partition, in a short job that is made as every job is. Raises ConfigError."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=directory) as folder:
        return _in_a_job(partition, directory, Path(folder), nodes, file)


def _in_a_job(partition: Partition, directory: Path, folder: Path, nodes: int, file: Path | None) -> list[Finding]:
    words = ["-m", "cluster.doctor", "--partition", partition.name, "--records", str(directory)]
    words += ["--probe", folder.name, *(["--partitions", str(file)] if file else [])]
    asked = partition.asked(nodes)
    asked = {**asked, "job-name": "doctor", "output": str(folder / "batch.out"), "time": "10"}
    notes = [
        f"export PYTHONPATH={shlex.quote(str(_ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"command -v scontrol > {shlex.quote(str(folder / 'scontrol'))}",
        f'scontrol --oneliner show job "$SLURM_JOB_ID" > {shlex.quote(str(folder / "job"))}',
    ]
    text = sbatch.script(asked, partition, folder, shlex.join(words), str(folder / "task-%t.out"), notes)
    (folder / "doctor.sh").write_text(text)
    began = time.time()
    complaint = _run_job(folder / "doctor.sh", str(asked.get("partition", partition.name)))
    ended = time.time()
    found = []
    said = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.out")))
    answers = [json.loads(line) for line in said.splitlines() if line.startswith('{"node"')]
    for answer in sorted(answers, key=lambda a: a["node"]):
        apart = max(began - answer["time"], answer["time"] - ended, 0.0)
        clock = run_check("clock", lambda apart=apart: skew(apart, "the login node's"))  # type: ignore[misc]
        findings = [*(Finding(**f) for f in answer["findings"]), clock]
        found += [Finding(f.level, f"{answer['node']}: {f.check}", f.text) for f in findings]
    if (folder / "scontrol").exists():
        there, record = (folder / "scontrol").read_text(), folder / "job"
        shown = record.read_text() if record.exists() else ""
        found.append(run_check("batch script", lambda: checks.batch_requeue(bool(there.strip()), shown)))
    if len(answers) < nodes:
        complaint = complaint or " ".join(said.split())[-300:]
        found.append(Finding(FAILURE, "nodes", f"{len(answers)} of {nodes} nodes answered: {complaint}"))
    return found


def _run_job(script: Path, where: str) -> str:
    """Run the script as a job, or in the allocation around this process, to its end; what sbatch complains of."""
    inside = "SLURM_JOB_ID" in os.environ
    words = ["bash", str(script)] if inside else ["sbatch", "--parsable", "--wait", str(script)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ALLOCATION_SECONDS)
    except FileNotFoundError:
        raise ConfigError(f"The command {words[0]} is missing: run this on a login node.") from None
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""  # bytes, also of a text stream
        job = (said.decode() if isinstance(said, bytes) else said).split(";")[0].strip()
        if job.isdigit():
            slurm.command("scancel", job)
        raise ConfigError(
            f"SLURM gave no nodes of {where} within {_ALLOCATION_SECONDS} s: try again when some are free."
        ) from None
    return " ".join(done.stderr.split())[-300:]


def main(argv: list[str] | None = None) -> int:
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = cluster_parser("doctor", __doc__)
    parser.add_argument("--partition", metavar="NAME", help="as described in partitions.toml")
    parser.add_argument("--on-node", action="store_true", help="also check nodes of the partition")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--partitions", type=Path, metavar="FILE", help=f"default: {partitions.OWN_FILE}, if it exists")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help=f"default: {RECORDS}")
    parser.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="as for cluster.submit")
    parser.add_argument("--probe", help=argparse.SUPPRESS)  # set by --on-node, in the allocation
    a = parser.parse_args(argv)
    if (a.on_node or a.probe) and not a.partition:
        raise ConfigError("--on-node needs --partition: say which nodes to check.")
    given = directives.parse_words(a.sbatch)
    partition = partitions.choose(a.partition, a.partitions, sbatch=given).for_nodes(a.nodes) if a.partition else None
    directory = a.records.absolute()
    if a.probe:
        assert partition is not None
        from submitit.slurm.slurm import SlurmJobEnvironment

        names = SlurmJobEnvironment().hostnames if os.environ.get("SLURM_JOB_NODELIST") else [platform.node()]
        mine = os.environ.get("SLURMD_NODENAME", platform.node())
        findings = node_findings(partition, directory, a.probe, [n for n in names if n != mine])
        print(json.dumps({"node": mine, "time": time.time(), "findings": [asdict(f) for f in findings]}), flush=True)
        return 0
    found = login_findings(partition, directory)
    if a.on_node and partition is not None and not any(f.level == FAILURE and f.check == "SLURM" for f in found):
        found += on_nodes(partition, directory, a.nodes, a.partitions.absolute() if a.partitions else None)
    for finding in found:
        print(finding)
    return 1 if any(f.level == FAILURE for f in found) else 0


if __name__ == "__main__":
    sys.exit(main())

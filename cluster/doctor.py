"""``python -m cluster.doctor [--partition v100 [--on-node]]``: is this cluster fit for our jobs?

Prints one line per check: ok, a warning, or a failure and what to do about it. --on-node also checks nodes of the
partition, in a short allocation (or the one it is started in). Exit status 1 if any check fails.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from cluster import checks, partitions, ray_node, slurm
from cluster.checks import FAILURE, OK, Finding, run_check, skew
from cluster.partitions import Partition
from cluster.records import RECORDS
from ima_dist.cli.entry import guarded
from ima_dist.cli.parser import cluster_parser
from ima_dist.config.errors import ConfigError

_ALLOCATION_SECONDS = 600


def node_findings(partition: Partition, directory: Path, probe: str, others: list[str]) -> list[Finding]:
    """Check one node of an allocation, from there."""
    towards = slurm.node_address(others[0]) if others else None

    def shared() -> tuple[str, str]:
        if not (directory / probe).exists():
            return FAILURE, f"{directory} is not the login node's: submit from a directory that all nodes share."
        return checks.directory_writable(directory)

    def cards() -> tuple[str, str]:
        return checks.driver_and_cards(partition.cards) if partition.gres else (OK, "none")

    base = ray_node.temporary_base(partition.temp) if ray_node.fits(partition.temp or "/tmp") else "/tmp"
    return [
        run_check("shared directory", shared),
        run_check("socket path", lambda: checks.socket_path(partition)),
        run_check("disk space", lambda: checks.disk_space(Path(base))),
        run_check("ports", checks.ports),
        run_check("interface", lambda: checks.interface(towards, partition.interface)),
        run_check("requeue", checks.requeue),
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
    """Check ``nodes`` nodes of the partition, in an allocation of a few minutes. Raises ConfigError."""
    p = partition
    probe = f".probe-{uuid.uuid4().hex[:8]}"
    words = ["srun", f"--partition={p.partition}", f"--nodes={nodes}", "--ntasks-per-node=1", "--time=10", "--quiet"]
    words += [f"--gres={p.gres}:{p.cards}"] if p.gres else []
    for name in ("account", "qos", "constraint", "reservation"):
        words += [f"--{name}={getattr(p, name)}"] if getattr(p, name) else []
    words += [f"--cpus-per-task={p.cards * p.cpus_per_card}", *([f"--mem={p.memory}"] if p.memory else []), *p.srun]
    words += [*shlex.split(p.python or shlex.quote(sys.executable)), "-m", "cluster.doctor", "--partition", p.name]
    words += ["--records", str(directory), "--probe", probe, *(["--partitions", str(file)] if file else [])]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / probe).touch()
    began = time.time()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ALLOCATION_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"SLURM gave no nodes of {p.partition} within {_ALLOCATION_SECONDS} s: try again when some are free."
        ) from None
    finally:
        (directory / probe).unlink(missing_ok=True)
    ended = time.time()
    found = []
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"node"')]
    for answer in sorted(answers, key=lambda a: a["node"]):
        apart = max(began - answer["time"], answer["time"] - ended, 0.0)
        clock = run_check("clock", lambda apart=apart: skew(apart, "the login node's"))  # type: ignore[misc]
        findings = [*(Finding(**f) for f in answer["findings"]), clock]
        found += [Finding(f.level, f"{answer['node']}: {f.check}", f.text) for f in findings]
    if len(answers) < nodes:
        complaint = " ".join(done.stderr.split())[-300:]
        found.append(Finding(FAILURE, "nodes", f"{len(answers)} of {nodes} nodes answered: {complaint}"))
    return found


def main(argv: list[str] | None = None) -> int:
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = cluster_parser("doctor", __doc__)
    parser.add_argument("--partition", metavar="NAME", help="as described in partitions.toml")
    parser.add_argument("--on-node", action="store_true", help="also check nodes of the partition")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--partitions", type=Path, metavar="FILE", help=f"default: {partitions.OWN_FILE}, if it exists")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help=f"default: {RECORDS}")
    parser.add_argument("--probe", help=argparse.SUPPRESS)  # set by --on-node, in the allocation
    a = parser.parse_args(argv)
    if (a.on_node or a.probe) and not a.partition:
        raise ConfigError("--on-node needs --partition: say which nodes to check.")
    partition = partitions.choose(a.partition, a.partitions) if a.partition else None
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

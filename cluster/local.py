"""``python -m cluster.local up|down``: a real SLURM on this machine, for development and tests.

One slurmctld and four slurmd run on the loopback interface, on free ports and with all files in one directory: three
nodes in the partition v100, one in titanv, with placeholder cards, and the partition urgent, which pre-empts jobs in
v100. ``down`` ends every process and removes the directory. Needs the Debian packages slurm-wlm and munge; installs
nothing.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, PIPE

from cluster import processes
from cluster.ray_node import free_port
from ima_dist.cli.entry import guarded
from ima_dist.cli.parser import cluster_parser
from ima_dist.config.errors import ConfigError

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
_DAEMONS = ("slurmctld", "slurmd", "slurmstepd", "munged")
NODES = {"v100": 3, "titanv": 1}
CARDS = 2
CPUS = 2
_WAIT = 60.0
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_SLURM_CONF = Path(__file__).with_name("local_slurm.conf")

_PARTITION = """\
[{name}]
cards = {cards}
gres = "gpu:{card}"
cpus_per_card = 1
memory = "3000M"
time = "0:30:00"
notice = 30
"""
_CARD = {"v100": "v100", "titanv": "titanv", "urgent": "v100"}  # by partition


def missing() -> list[str]:
    """Programs of SLURM and MUNGE that are missing on this machine."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


def environment(directory: Path) -> dict[str, str]:
    """Environment variables with which SLURM's commands find the local one."""
    return {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": _PATH}


def up(directory: Path, kill_wait: int = 30, prepare: Callable[[Path], None] = lambda directory: None) -> None:
    """Start it, and wait until all nodes are idle. Raises ConfigError if it cannot be started.

    prepare: called with the directory once slurm.conf and gres.conf are there, to change them.
    """
    if absent := missing():
        raise ConfigError(f"{', '.join(absent)} missing: run apt-get install slurm-wlm munge.")
    if directory.exists():
        raise ConfigError(f"{directory} exists: stop the local SLURM in it with down, or choose another --dir.")
    directory.mkdir(mode=0o755, parents=True)
    try:
        _write_files(directory, kill_wait)
        prepare(directory)
        _start_all(directory)
    except BaseException:
        with contextlib.suppress(Exception):
            down(directory)
        raise


def start_node(directory: Path, name: str) -> None:
    """Start one node's slurmd, at first or after it was killed."""
    _run(directory, "slurmd", "-N", name)


def node_names() -> list[str]:
    return [f"{partition}-{i}" for partition, count in NODES.items() for i in range(count)]


def down(directory: Path) -> None:
    """Cancel its jobs, end its processes, remove its directory. Nothing happens if there is none.

    Raises ConfigError if the directory is not that of a local SLURM.
    """
    if not directory.exists():
        return
    if not (directory / "slurm.conf").is_file():
        raise ConfigError(f"{directory} has no slurm.conf, so it is not the directory of a local SLURM: check --dir.")
    _cancel_jobs(directory)
    ours = _processes(directory)
    processes.end(ours, signal.SIGTERM)
    processes.wait_for(lambda: not any(map(processes.alive, ours)), 5)
    # Leftovers of jobs, too: what a killed slurmd had started has no one else to end it.
    processes.end_all(lambda: _processes(directory), 5)
    shutil.rmtree(directory)


def _cancel_jobs(directory: Path) -> None:
    """Cancel all jobs, and give them time to clean up."""
    if _ask(directory, "squeue", "--noheader"):
        _ask(directory, "scancel", "--user", getpass.getuser())
        processes.wait_for(lambda: not _ask(directory, "squeue", "--noheader"), _WAIT, every=0.3)


def _ask(directory: Path, *words: str) -> str:
    """Output of a SLURM command; "" without an answer: a controller that has died has no jobs left to end."""
    env = {**os.environ, **environment(directory)}
    with contextlib.suppress(subprocess.SubprocessError):
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True).stdout
    return ""


def _processes(directory: Path) -> list[int]:
    """Daemons of the local SLURM and everything that its jobs started, but no shell that only uses it."""

    def ours(pid: int) -> bool:
        # Debian calls the programs slurmd-wlm and so on.
        return "SLURM_JOB_ID" in processes.environment(pid) or processes.program(pid).startswith(_DAEMONS)

    return list(filter(ours, processes.started_with("SLURM_CONF", str(directory / "slurm.conf"))))


def _write_files(directory: Path, kill_wait: int) -> None:
    (directory / "state").mkdir()
    host, user, names = socket.gethostname(), getpass.getuser(), node_names()
    ports: set[int] = set()
    while len(ports) <= len(names):
        ports.add(free_port(""))
    port, *node_ports = ports
    nodes, gres = [], []
    for name, node_port in zip(names, node_ports, strict=True):
        kind = name.rsplit("-", 1)[0]
        nodes.append(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} "
            f"CPUs={CPUS} RealMemory=4000 Gres=gpu:{kind}:{CARDS}"
        )
        for card in range(CARDS):
            file = directory / f"{name}.card{card}"
            file.touch()
            # A count without files is refused by slurmd.
            gres.append(f"NodeName={name} Name=gpu Type={kind} File={file}")
    settings = {"host": host, "port": port, "user": user, "dir": directory, "kill_wait": kill_wait}
    (directory / "slurm.conf").write_text(_SLURM_CONF.read_text().format(**settings, nodes="\n".join(nodes)))
    (directory / "gres.conf").write_text("\n".join(gres) + "\n")
    told = [_PARTITION.format(name=name, card=card, cards=CARDS) for name, card in _CARD.items()]
    use = f"# For: python -m cluster.submit … --partitions {directory}/partitions.toml"
    (directory / "partitions.toml").write_text("\n".join([use, *told]))
    key = directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def _start_all(directory: Path) -> None:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    _run(directory, "munged", *(f"--{option}={directory}/munge.{suffix}" for option, suffix in files.items()))
    _run(directory, "slurmctld", "-c")
    for name in node_names():
        start_node(directory, name)

    def ready() -> bool:
        states = _ask(directory, "sinfo", "--noheader", "--Node", "--format=%t")
        return states.split().count("idle") >= len(node_names()) and "unk" not in states

    if not processes.wait_for(ready, _WAIT):
        log = (directory / "slurmctld.log").read_text().splitlines()
        errors = [line for line in log if "error" in line or "fatal" in line]
        raise ConfigError(f"The local SLURM was not ready within {_WAIT:.0f} s; its last error: {errors[-1:]}.")


def _run(directory: Path, *command: str) -> None:
    """Start a daemon, which puts itself into the background. Raises ConfigError with its error message."""
    # Not the caller's directory, which somebody may want to unmount or remove.
    env = {**os.environ, **environment(directory)}
    done = subprocess.run(
        command, cwd=directory, env=env, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, text=True, start_new_session=True
    )
    if done.returncode:
        raise ConfigError(f"{command[0]} did not start: {' '.join(done.stderr.split())}.")


def main(argv: list[str] | None = None) -> int:
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = cluster_parser("local", __doc__)
    parser.add_argument("what", choices=("up", "down"))
    place = Path(f"/tmp/slurm-{getpass.getuser()}")
    parser.add_argument("--dir", type=Path, default=place, help="directory for its files (default: /tmp/slurm-USER)")
    arguments = parser.parse_args(argv)
    directory = arguments.dir.absolute()
    if arguments.what == "down":
        down(directory)
        return 0
    up(directory)
    print(f"export SLURM_CONF={directory}/slurm.conf")
    print(f"# then, for example: python -m cluster.doctor --partitions {directory}/partitions.toml --partition v100")
    return 0


if __name__ == "__main__":
    sys.exit(main())

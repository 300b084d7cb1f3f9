"""The checks that cluster.doctor makes. Each returns a level and a sentence, which for a failure says what to do."""

import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import partitions, ray_node, slurm
from cluster.partitions import Partition
from ima_dist.config.errors import ConfigError
from ima_dist.launch.network_interface import interface_of

OK, WARNING, FAILURE = "ok", "warning", "failure"
_GIB = 2**30
# Free space that checkpoints of the largest network may need, and below which Ray may not start.
_ENOUGH_BYTES, _LEAST_BYTES = 10 * _GIB, 1 * _GIB
# A run does not rely on the ages of files; make and other tools do.
_SKEW_WARNING, _SKEW_FAILURE = 2.0, 60.0
# Seconds between SLURM's SIGTERM and SIGKILL that a checkpoint may need.
_KILL_WAIT = 30


@dataclass(frozen=True)
class Finding:
    """The outcome of a check. level: ok, warning or failure. text: says what to do about it."""

    level: str
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.check}: {self.text}"


def run_check(name: str, check: Callable[[], tuple[str, str]]) -> Finding:
    """Make a check; an error that it raises is a failure."""
    try:
        level, text = check()
        return Finding(level, name, text)
    except ConfigError as error:
        return Finding(FAILURE, name, str(error))
    except OSError as error:
        return Finding(FAILURE, name, f"{error.filename or ''} {error.strerror or error}.".strip())


# ---- SLURM, from the login node


def reachable() -> tuple[str, str]:
    version = slurm.command("sinfo", "--version").strip()
    answer = slurm.command("scontrol", "ping").strip().splitlines()
    if not any("UP" in line for line in answer):
        return FAILURE, f"{version}, but no controller is up ({'; '.join(answer)}): ask the administrators."
    return OK, f"{version}, controller up"


def accounting() -> tuple[str, str]:
    try:
        slurm.command("sacct", "--noheader", "--jobs=1")
    except ConfigError as error:
        return WARNING, f"none ({error}) Nothing to do: cluster.status works without it."
    return OK, "sacct answers"


def partition_exists(partition: Partition) -> tuple[str, str]:
    try:
        found = slurm.fields(slurm.command("scontrol", "--oneliner", "show", "partition", partition.partition))
    except ConfigError:
        names = slurm.command("sinfo", "--noheader", "--format=%R").split()
        return FAILURE, (
            f"SLURM has no partition {partition.partition}; it has {', '.join(sorted(set(names)))}: "
            f"correct 'partition' under [{partition.name}] in {partitions.OWN_FILE}."
        )
    if found.get("State") != "UP":
        return FAILURE, f"{partition.partition} is {found.get('State')}: ask the administrators, or use another."
    most = found.get("MaxTime", "UNLIMITED")
    if most[:1].isdigit() and partitions.minutes(most) < partition.time:
        return FAILURE, f'{partition.partition} allows at most {most}: set time = "{most}" under [{partition.name}].'
    return OK, f"{partition.partition}, {found.get('TotalNodes')} nodes, at most {most}"


def cards_exist(partition: Partition) -> tuple[str, str]:
    """Whether some node has the cards, CPUs and memory that a job asks of each."""
    lines = slurm.command("sinfo", "--noheader", "--Node", "-p", partition.partition, "--format=%N|%G|%c|%m|%T")
    nodes = [line.split("|") for line in lines.splitlines()]
    cpus, memory = partition.cards * partition.cpus_per_card, _megabytes(partition.memory)
    offers = sorted({node[1] for node in nodes})
    with_cards = [n for n in nodes if partition.gres is None or _count(n[1], partition.gres) >= partition.cards]
    if not with_cards:
        return FAILURE, (
            f"no node has {partition.gres}:{partition.cards}; they offer {', '.join(offers) or 'nothing'}: "
            f"correct 'gres' or 'cards' under [{partition.name}]."
        )
    fit = [n for n in with_cards if int(n[2]) >= cpus and int(n[3].rstrip("+")) >= memory]
    if not fit:
        most = max(with_cards, key=lambda n: int(n[2]))
        return FAILURE, (
            f"a node has {most[2]} CPUs and {most[3]} MB, but a job asks for {cpus} and {memory}: "
            f"lower 'cpus_per_card' or 'memory' under [{partition.name}]."
        )
    usable = [n for n in fit if not re.search("down|drain|fail|unk|inval", n[4].lower())]
    if not usable:
        return WARNING, f"all {len(fit)} suitable nodes are down or drained: jobs will wait."
    return OK, f"{len(usable)} of {len(nodes)} nodes have {partition.gres or 'no card'}:{partition.cards} and are up"


def _count(gres: str, wanted: str) -> int:
    """How many of ``wanted`` (gpu or gpu:v100) are in a node's list: gpu:v100:4(S:0-1),…"""
    total = 0
    for part in gres.split(","):
        found = re.match(r"([^:(]+)(?::([^:(]+))?:(\d+)", part)
        if found and wanted in (found[1], f"{found[1]}:{found[2]}"):
            total += int(found[3])
    return total


def _megabytes(memory: str | None) -> int:
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", memory or "0", re.IGNORECASE)
    if not found:
        raise ConfigError(f"memory = {memory!r} is not an amount of memory: write, for example, 160G.")
    return int(int(found[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2].upper()])


def grace() -> tuple[str, str]:
    found = re.search(r"KillWait\s*=\s*(\d+)", slurm.command("scontrol", "show", "config"))
    seconds = int(found[1]) if found else 0
    if seconds < _KILL_WAIT:
        return WARNING, (
            f"{seconds} s between SIGTERM and SIGKILL (KillWait) may be too short for a checkpoint: pre-emption "
            "without notice then costs up to an epoch, or less with --checkpoint-every."
        )
    return OK, f"{seconds} s between SIGTERM and SIGKILL"


# ---- any machine


def directory_writable(directory: Path) -> tuple[str, str]:
    _written(directory)
    return OK, f"{directory} is writable"


def _written(directory: Path) -> float:
    """Time, by the file server's clock, of a file that is written there and removed. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_text("x")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def disk_space(directory: Path) -> tuple[str, str]:
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    text = f"{free / _GIB:.1f} GiB free in {directory}"
    if free < _LEAST_BYTES:
        return FAILURE, f"{text}: make room, or work in another directory."
    return (OK, text) if free >= _ENOUGH_BYTES else (WARNING, f"{text}: a large network's checkpoints may not fit.")


def socket_path(partition: Partition | None) -> tuple[str, str]:
    base = ray_node.temporary_base(partition.temp if partition else None)
    return OK, f"Ray's sockets fit below {base}"


def ports() -> tuple[str, str]:
    ray_node.free_port("")
    return OK, "some are free between 20000 and 32000"


def torch_fits(capability: str | None) -> tuple[str, str]:
    """Whether torch has code for the cards: of the same major compute capability, and of no newer minor one."""
    import torch

    flags = torch._C._cuda_getArchFlags() if torch.version.cuda else None
    built = re.findall(r"sm_(\d+)(\d)\b", flags or "")
    names = " ".join(f"sm_{major}{minor}" for major, minor in built)
    if capability is None:
        return WARNING, f"torch {torch.__version__} is for {names or 'CPUs only'}; compute_capability is not set."
    major, minor = capability.split(".")
    if any(m == major and int(n) <= int(minor) for m, n in built):
        return OK, f"torch {torch.__version__} has code for compute capability {capability}"
    remedy = "pip install -c constraints/volta.txt -e ." if capability == "7.0" else "install a build that supports it."
    return FAILURE, (
        f"torch {torch.__version__} is built for {names or 'CPUs only'}, not for sm_{major}{minor} "
        f"(compute capability {capability}): {remedy}"
    )


def file_clock(directory: Path) -> tuple[str, str]:
    """Compare this machine's clock with that of the file server."""
    before = time.time()
    written = _written(directory)
    return skew(max(before - written, written - time.time(), 0.0), "the file server's")


def skew(seconds: float, whose: str) -> tuple[str, str]:
    text = f"{seconds:.1f} s from {whose}"
    if seconds > _SKEW_FAILURE:
        return FAILURE, f"{text}: time synchronisation is broken; tell the administrators."
    if seconds > _SKEW_WARNING:
        return WARNING, f"{text}: ask the administrators to check time synchronisation."
    return OK, text


# ---- a compute node


def driver_and_cards(wanted: int) -> tuple[str, str]:
    if shutil.which("nvidia-smi") is None:
        return FAILURE, "nvidia-smi is missing, so there is no driver: tell the administrators, or use another node."
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=120)
    cards = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or len(cards) < wanted:
        complaint = " ".join((done.stderr or done.stdout).split())
        return FAILURE, f"{len(cards)} of {wanted} cards are visible ({complaint}): exclude this node in sbatch."
    return OK, "; ".join(sorted(set(cards)))


def requeue() -> tuple[str, str]:
    """Whether a job on this node can have itself requeued."""
    if shutil.which("scontrol") is None:
        return FAILURE, (
            "scontrol is missing where jobs run, so they cannot be requeued at their time limit: make SLURM's commands "
            f"available to the 'python' in {partitions.OWN_FILE}."
        )
    return OK, "scontrol is available"


def interface(towards: str | None, name: str | None) -> tuple[str, str]:
    """Find the interface that gloo and NCCL will be told to use."""
    address = ray_node.own_address(towards, name)
    found = interface_of(address)
    if found is None:
        return FAILURE, f"no interface has the address {address}: name one as interface in {partitions.OWN_FILE}."
    return OK, f"{found} ({address})"

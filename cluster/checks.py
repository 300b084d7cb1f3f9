"""The checks that cluster.doctor makes. Each returns a level and a sentence, which for a failure says what to do."""

import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import directives, partitions, ray_node, slurm
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
    name = str(partition.asked(1).get("partition") or _default_partition())
    try:
        found = slurm.fields(slurm.command("scontrol", "--oneliner", "show", "partition", name))
    except ConfigError:
        names = slurm.command("sinfo", "--noheader", "--format=%R").split()
        return FAILURE, (
            f"SLURM has no partition {name}; it has {', '.join(sorted(set(names)))}: "
            f"correct 'partition' under [{partition.name}] in {partitions.OWN_FILE}."
        )
    if found.get("State") != "UP":
        return FAILURE, f"{name} is {found.get('State')}: ask the administrators, or use another."
    most = found.get("MaxTime", "UNLIMITED")
    if most[:1].isdigit() and partitions.minutes(most) < partition.time:
        return FAILURE, f'{name} allows at most {most}: set time = "{most}" under [{partition.name}].'
    return OK, f"{name}, {found.get('TotalNodes')} nodes, at most {most}"


def _default_partition() -> str:
    """The partition that SLURM takes if none is named. Raises ConfigError if there is none."""
    for name in slurm.command("sinfo", "--noheader", "--format=%P").split():
        if name.endswith("*"):
            return name[:-1]
    raise ConfigError(f"SLURM has no default partition: name one as partition in {partitions.OWN_FILE}.")


def limits(partition: Partition) -> tuple[str, str]:
    """What the site allows one user: rows of an array, jobs at a time, time."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", slurm.command("scontrol", "show", "config"))
    said = [f"arrays of up to {found[1]} rows (larger ones are split)"] if found else []
    qos = partition.asked(1).get("qos")
    if qos:
        form = "--format=MaxSubmitJobsPerUser,MaxJobsPerUser,MaxWall"
        try:
            line = slurm.command("sacctmgr", "--noheader", "--parsable2", "show", "qos", str(qos), form).strip()
        except ConfigError:
            return OK, "; ".join([*said, f"those of QOS {qos} are not known: there is no accounting"])
        if not line:
            return FAILURE, f"SLURM has no QOS {qos}: correct 'qos' under [{partition.name}], or --qos."
        submitted, running, wall = line.splitlines()[0].split("|")
        if wall and partitions.minutes(wall) < partition.time:
            return FAILURE, f'QOS {qos} allows at most {wall}: set time = "{wall}" under [{partition.name}].'
        said += [f"QOS {qos}: {submitted} jobs submitted at a time (the rest is held back)"] if submitted else []
        said += [f"QOS {qos}: {running} running"] if running else []
    return OK, "; ".join(said) or "none are known"


def cards_exist(partition: Partition) -> tuple[str, str]:
    """Whether some node has the cards, CPUs and memory that a job asks of each."""
    asked = partition.asked(1)
    where = ["-p", str(asked["partition"])] if "partition" in asked else []
    lines = slurm.command("sinfo", "--noheader", "--Node", *where, "--format=%N|%G|%c|%m|%T")
    nodes = [line.split("|") for line in lines.splitlines()]
    kind = directives.gpu_kind(asked)
    cpus, memory = partition.cards * partition.cpus_per_card, _megabytes(str(asked.get("mem", "0")))
    offers = sorted({node[1] for node in nodes})
    if not kind and any(_count(offer, "gpu") for offer in offers):
        return FAILURE, (
            f"the nodes have cards ({', '.join(offers)}), but none is asked for: set 'gres', or sbatch = "
            f"{{gpus-per-node = …}}, under [{partition.name}]."
        )
    with_cards = [n for n in nodes if not kind or _count(n[1], kind) >= partition.cards]
    if not with_cards:
        return FAILURE, (
            f"no node has {kind}:{partition.cards}; they offer {', '.join(offers) or 'nothing'}: "
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
    what = f"{kind}:{partition.cards}" if kind else "what a job asks for, which is no card,"
    return OK, f"{len(usable)} of {len(nodes)} nodes have {what} and are up"


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


def socket_path(partition: Partition | None, on_node: bool = False) -> tuple[str, str]:
    wanted = partition.temp if partition else None
    if wanted and not on_node:
        return OK, f"{wanted} is looked at on the nodes (--on-node)"
    base = ray_node.temporary_base(wanted)
    how = "Ray's sockets fit below" if ray_node.fits(base) else "a link in /tmp leads Ray to"
    return OK, f"{how} {base}"


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
    if slices := ray_node.mig_slices(os.environ.get("CUDA_VISIBLE_DEVICES", "")):
        # nvidia-smi lists the cards, of which the job may have several parts.
        cards = [f"{slices} slices of {'; '.join(sorted(set(cards)))}"] * slices if cards else []
    if done.returncode or len(cards) < wanted:
        complaint = " ".join((done.stderr or done.stdout).split())
        return FAILURE, f"{len(cards)} of {wanted} cards are visible ({complaint}): exclude this node in sbatch."
    return OK, "; ".join(sorted(set(cards)))


def requeue() -> tuple[str, str]:
    """Whether the run on this node can ask for what SLURM wants of it, and requeue its job."""
    if shutil.which("scontrol") is None:
        return WARNING, (
            "scontrol is missing where Python runs (in a container?): at its time limit the batch script requeues the "
            "job, but a run that is pre-empted looks cancelled, and then must be submitted again."
        )
    return OK, "scontrol is available"


def batch_requeue(has_scontrol: bool, record: str) -> tuple[str, str]:
    """Whether the batch script can have its job requeued. record: what scontrol shows of the job there."""
    if not has_scontrol:
        return (
            FAILURE,
            "scontrol is missing in batch scripts, so no job can be requeued: load SLURM's module in 'setup'.",
        )
    if slurm.fields(record).get("Requeue") == "0":
        return FAILURE, (
            "SLURM does not let these jobs be requeued (Requeue=0): leave requeue in sbatch as it is, or ask the "
            "administrators; else a run that meets its time limit must be submitted again."
        )
    return OK, "jobs may be requeued"


def internet() -> tuple[str, str]:
    """Whether a node reaches the internet, by the server of one of the data sets."""
    try:
        socket.create_connection(("www.cs.toronto.edu", 443), timeout=5).close()
    except OSError:
        return OK, "none: data are fetched on the login node, when a job is submitted with --data.download"
    return OK, "reachable"


def interface(towards: str | None, name: str | None) -> tuple[str, str]:
    """Find the interface that gloo and NCCL will be told to use."""
    address = ray_node.own_address(towards, name)
    found = interface_of(address)
    if found is None:
        return FAILURE, f"no interface has the address {address}: name one as interface in {partitions.OWN_FILE}."
    return OK, f"{found} ({address})"

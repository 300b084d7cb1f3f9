"""Start this task's node of the job's Ray cluster, and end it with all its files."""

import contextlib
import os
import random
import secrets
import socket
import sys
from pathlib import Path

from cluster import processes
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.launch import ray_variables
from ima_dist.launch.network_interface import addresses
from ima_dist.launch.temporary import SHORT
from ima_dist.launch.temporary import fits as fits
from ima_dist.launch.temporary import private_directory as private_directory

# Training passes nothing through the object store.
_OBJECT_STORE_BYTES = 256 * 2**20
_SLOW, _ATTEMPTS = "timed out during startup", 3


def new_token(path: Path) -> None:
    """Write a fresh secret to a file that only its owner can read. Ray expects at least 32 bytes."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))


def environment(token: Path) -> dict[str, str]:
    """Variables for every process of Ray and every client: Ray refuses whoever does not have the token."""
    return {**ray_variables.TRAINING, **ray_variables.OWN_CLUSTER, "RAY_AUTH_TOKEN_PATH": str(token)}


def mig_slices(visible: str) -> int:
    """How many slices of GPUs (MIG) CUDA_VISIBLE_DEVICES names; 0 for whole GPUs.

    Ray counts the cards behind them, so that two slices of one card would be one.
    """
    return sum(1 for name in visible.split(",") if name.strip().startswith("MIG-"))


def expanded(path: str, what: str) -> str:
    """``path`` with variables and ~ replaced by their values on this node. Raises ConfigError if one is not set."""
    found = os.path.expanduser(os.path.expandvars(path))
    if "$" in found:
        raise ConfigError(f"{what} is {path}, but the variable is not set on {socket.gethostname()}: correct its name.")
    return found


def temporary_base(wanted: str | None) -> str:
    """Directory in which the private one is made: the partition's, the job's TMPDIR, or /tmp. Raises ConfigError."""
    if wanted:
        base = expanded(wanted, "temp in partitions.toml")
        # One per job, such as /scratch/$SLURM_JOB_ID, may not exist yet.
        with contextlib.suppress(OSError):
            os.makedirs(base, mode=0o700, exist_ok=True)
    candidates = [base] if wanted else [os.environ.get("SLURM_TMPDIR"), os.environ.get("TMPDIR"), SHORT]
    for base in filter(None, candidates):
        if os.access(base, os.W_OK | os.X_OK):
            return base
    raise ConfigError(
        f"No usable temporary directory on {socket.gethostname()}: {' and '.join(filter(None, candidates))} cannot be "
        "written; name another as temp in partitions.toml."
    )


def free_port(address: str) -> int:
    """A port below those that the system gives to outgoing connections."""
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port
    raise ConfigError(
        f"No free port between 20000 and 32000 on {socket.gethostname()}: stop something that listens there."
    )


def own_address(towards: str | None, interface: str | None) -> str:
    """IPv4 address of this node for the other nodes of the job.

    It is the address of ``interface``, or the one from which ``towards`` (another node) is reached; without another
    node it is the loopback address, which nobody else can reach. Raises ConfigError.
    """
    if interface:
        if found := addresses().get(interface):
            return found
        guess = did_you_mean(interface, addresses())
        raise ConfigError(f"{socket.gethostname()} has no interface {interface!r} with an IPv4 address{guess}.")
    if towards is None:
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((towards, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"{socket.gethostname()} cannot reach {towards} ({error.strerror or error}): "
            "name the network as interface in partitions.toml."
        ) from None


class RayEnded(RuntimeError):
    """Ray's processes have ended. One sentence."""


class RayNode:
    """``ray start --block`` as a child process, out of reach of the job's signals. Its output goes to ``log``."""

    def __init__(self, temp: Path, log: Path, token: Path, address: str, cpus: int, head: str | None = None) -> None:
        self.temp, self.log, self.token, self.address, self.cpus, self.head = temp, log, token, address, cpus, head
        self.dashboard_port = 0
        #: Known before the cluster is up. Ray writes it to a file only some time after it says that it has started.
        self.gcs_address = head or ""
        self.attempts = 0
        self._start()

    def _start(self) -> None:
        self.attempts += 1
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        words += [f"--node-ip-address={self.address}", f"--temp-dir={self.temp}", f"--num-cpus={self.cpus}"]
        words += ["--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false"]
        words += [f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        if slices := mig_slices(os.environ.get("CUDA_VISIBLE_DEVICES", "")):
            words += [f"--num-gpus={slices}"]
        # Other people's Ray may hold the usual ports of a node.
        words += [f"--dashboard-agent-listen-port={free_port(self.address)}"]
        if self.head is None:
            self.dashboard_port = free_port("127.0.0.1")
            port = free_port(self.address)
            self.gcs_address = f"{self.address}:{port}"
            words += ["--head", f"--port={port}", f"--ray-client-server-port={free_port(self.address)}"]
            words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}"]
        else:
            words += [f"--address={self.head}"]
        ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        # Ray's dashboard makes further sockets in TMPDIR, whose path may be too long for them.
        ours["TMPDIR"] = str(self.temp)
        self.process = processes.start(words, {**ours, **environment(self.token)}, self.log)

    def up(self) -> bool:
        """Whether this node is registered. Raises RayEnded if it has ended instead."""
        said = self.log.read_text(errors="replace")
        if self.process.poll() is not None:
            if _SLOW in said and self.attempts < _ATTEMPTS:
                # Ray gives a node 30 s to register, which a busy one may exceed, and that cannot be configured.
                end_descendants()
                self._start()
                return False
            lines = [line for line in said.splitlines() if line.strip()]
            raise RayEnded(
                f"Ray ended on {socket.gethostname()} (status {self.process.returncode}), see {self.log}: "
                f"{lines[-1].strip() if lines else 'no output'}"
            )
        return "Ray runtime started" in said


def end_descendants() -> None:
    """End every process that this task has started, daemons included. None of them holds anything to be saved."""
    processes.end_all(lambda: processes.descendants(os.getpid()), 2, every=0.02)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass

"""Several hosts on this machine: network namespaces joined by a virtual cable, each with a Ray node in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ima_dist.launch import ray_variables

ROOT = Path(__file__).parent.parent
PORT = 6399  # nothing else listens inside the namespaces
# `ray start` without the server for Ray's remote clients, which on a busy machine ends for lack of time, and the
# whole node with it.
_START = "from ray.scripts import scripts; scripts.get_ray_client_dependency_error = lambda: 'unused'; scripts.main()"


def why_not() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if shutil.which("ip") is None:
        return "the command ip is missing: apt-get install iproute2"
    name = f"ima-probe-{uuid.uuid4().hex[:6]}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "network namespaces can be made by root alone"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@dataclass
class Hosts:
    """Two hosts; the first has the head of a Ray cluster, the second has joined it."""

    directory: Path
    names: list[str]
    addresses: list[str]
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def on(self, host: int, *words: str) -> list[str]:
        """A command that runs on a host, whose /tmp/ray is its own."""
        # ip netns exec gives every command its own view of the mounts.
        script = 'mkdir -p "$0" /tmp/ray && mount --bind "$0" /tmp/ray && exec "$@"'
        own = str(self.directory / self.names[host])
        return ["ip", "netns", "exec", self.names[host], "sh", "-c", script, own, *words]

    def cable(self, up: bool) -> None:
        """Plug the cable between the hosts in, or pull it."""
        _ip("-n", self.names[0], "link", "set", "cable", "up" if up else "down")

    def start_node(self, host: int, cpus: int = 1) -> None:
        where = ["--head", f"--port={PORT}"] if host == 0 else [f"--address={self.addresses[0]}:{PORT}"]
        command = [sys.executable, "-c", _START, "start", *where, "--block"]
        command += [f"--node-ip-address={self.addresses[host]}", f"--num-cpus={cpus}", "--dashboard-host=127.0.0.1"]
        # Left to find ports for itself, a node waits for its agents to tell theirs, and on a busy machine gives up.
        agents = ("dashboard-agent-grpc-port", "dashboard-agent-listen-port", "metrics-export-port")
        command += [f"--{name}={52365 + n}" for n, name in enumerate((*agents, "runtime-env-agent-port"))]
        self.nodes.append(
            subprocess.Popen(
                self.on(host, *command),
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def wait_for_nodes(self, count: int) -> None:
        # Not by ray.init, which may wait for ever while the cluster is still coming up, and lets it start workers.
        code = f"""
from ray._raylet import GcsClient
nodes = GcsClient(address="{self.addresses[0]}:{PORT}").get_all_node_info().values()
raise SystemExit(sum(node.state == 0 for node in nodes) != {count})  # 0: alive
"""
        self._until(code, f"no {count} Ray nodes")

    def _until(self, code: str, what: str) -> None:
        """Run Python code on the first host until it succeeds."""
        until = time.monotonic() + 300
        command = self.on(0, sys.executable, "-c", code)
        while subprocess.run(command, env=self.environment, capture_output=True, timeout=300).returncode:
            if any(node.poll() is not None for node in self.nodes) or time.monotonic() > until:
                raise ChildProcessError(f"{what}: a node has ended, or five minutes have passed")
            time.sleep(0.5)


def descendants(pid: int) -> list[int]:
    """Process ids below ``pid``, read from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def processes_on(name: str) -> list[int]:
    """All processes in a network namespace."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]


def _end(name: str) -> None:
    until = time.monotonic() + 30
    while (pids := processes_on(name)) and time.monotonic() < until:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    _ip("netns", "del", name)


@contextlib.contextmanager
def two_hosts(tmp_path: Path, **variables: str) -> Iterator[Hosts]:
    """Two hosts with one CPU each, as a Ray cluster with token authentication; gone at the end.

    ``variables`` are set in their environment.
    """
    mark = uuid.uuid4().hex[:6]
    token = tmp_path / "token"
    token.write_text("fedcba9876543210" * 4)
    token.chmod(0o600)
    # ray start looks through all processes of the machine for a cluster that has the address of its own.
    addresses = [f"10.{64 + int(mark[:2], 16) % 128}.{int(mark[2:4], 16)}.{last}" for last in (1, 2)]
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": str(ROOT),
        **ray_variables.OWN_CLUSTER,
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "300000",
        "RAY_ADDRESS": f"{addresses[0]}:{PORT}",
    }
    hosts = Hosts(tmp_path, [f"ima-a-{mark}", f"ima-b-{mark}"], addresses, environment)
    made: list[str] = []
    try:
        for name in hosts.names:
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        a, b = hosts.names
        _ip("-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b)
        for name, address in zip(hosts.names, addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        hosts.start_node(0)
        hosts.wait_for_nodes(1)
        hosts.start_node(1)
        hosts.wait_for_nodes(2)
        yield hosts
    finally:
        # Nothing there is worth a polite end, which takes Ray up to a minute.
        for name in made:
            _end(name)
        for node in hosts.nodes:
            node.wait(timeout=30)

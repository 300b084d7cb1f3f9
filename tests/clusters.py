"""A Ray cluster as an administrator starts one: a head, and nodes that join it and leave it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests import commands, workers

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
ADDRESS = "127.0.0.1"


@dataclass
class RayCluster:
    """Nodes on this machine. environment: what a user of the cluster has set."""

    port: int
    dashboard: int
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a node with one CPU, in a process of its own that ends with it."""
        command = [*RAY, "start", "--block", "--num-cpus=1", f"--node-ip-address={ADDRESS}", *options]
        # Of its own: the usual one may belong to another cluster on this machine, and jobs then find no agent.
        command.append(f"--dashboard-agent-listen-port={workers.free_port()}")
        quiet = subprocess.DEVNULL
        node = subprocess.Popen(command, env=self.environment, stdout=quiet, stderr=quiet)
        self.nodes.append(node)
        return node

    def join(self) -> subprocess.Popen[bytes]:
        """Start one more node."""
        return self.start(f"--address={ADDRESS}:{self.port}")

    def ray(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Ray's as a user of the cluster."""
        return subprocess.run(
            [*RAY, *words], env={**self.environment, **environment}, capture_output=True, text=True, timeout=300
        )

    def node_ids(self) -> list[str]:
        """Ids of the nodes that are alive, in the order in which they came."""
        code = (
            "import ray; ray.init(log_to_driver=False); "
            "print(*[n['NodeID'] for n in sorted(ray.nodes(), key=lambda n: 'node:__internal_head__' not in "
            "n['Resources']) if n['Alive']])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, capture_output=True, text=True, timeout=120
        )
        return done.stdout.split()

    def drain(self, node_id: str) -> None:
        """Announce that a node is about to be taken away, as a provider of spare capacity does."""
        done = self.ray(
            "drain-node", f"--address={ADDRESS}:{self.port}", f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", "--deadline-remaining-seconds=600",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End a node without a warning, with all that runs on it."""
        for pid in [*commands.descendants(node.pid), node.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait(timeout=60)


@contextlib.contextmanager
def ray_cluster(tmp_path: Path, cpus: int = 1, **environment: str) -> Iterator[RayCluster]:
    """A cluster whose head has ``cpus``, with token authentication; gone at the end.

    environment: variables of Ray's processes, and so of all workers.
    """
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    port, dashboard = workers.free_port(), workers.free_port()
    env = commands.environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0",
        RAY_ADDRESS=f"{ADDRESS}:{port}", RAY_TMPDIR="/tmp", **environment,
    )  # fmt: skip
    cluster = RayCluster(port, dashboard, env)
    head = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    try:
        cluster.environment = head
        cluster.start(
            "--head", f"--port={port}", f"--num-cpus={cpus}", f"--dashboard-host={ADDRESS}",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={workers.free_port()}",
        )  # fmt: skip
        cluster.environment = env
        commands.wait_for(lambda: workers.listens(dashboard), 120, "Ray's job server")
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            family = commands.descendants(node.pid)
            node.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=30)
            for pid in [*family, node.pid]:
                if commands.alive(pid):
                    os.kill(pid, signal.SIGKILL)

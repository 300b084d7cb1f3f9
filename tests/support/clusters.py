"""A Ray cluster as an administrator starts one: a head, and nodes that join it and leave it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ima_dist.launch import ray_variables
from tests.support import commands, workers

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
ADDRESS = "127.0.0.1"
# On a busy machine a node may give up while it starts: Ray allows its parts 15 s to find one another.
_TRIES = 4
# Answers every line with the ids of the nodes that are alive, the head first.
_OBSERVER = """
import sys, ray
ray.init(log_to_driver=False, logging_level="ERROR")
for _ in sys.stdin:
    nodes = sorted(ray.nodes(), key=lambda n: "node:__internal_head__" not in n["Resources"])
    print(*[n["NodeID"] for n in nodes if n["Alive"]], flush=True)
"""


class RayCluster:
    """Nodes on this machine, with token authentication.

    environment: what a user of the cluster has set.
    """

    def __init__(self, token: Path, cpus: int, temp: str, jobs: bool, environment: dict[str, str]) -> None:
        self._environment = commands.environment(
            **ray_variables.OWN_CLUSTER, RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR="/tmp",
            **environment,
        )  # fmt: skip
        self._environment.pop("RAY_ADDRESS", None)
        self._running: list[subprocess.Popen[str]] = []
        self._temp = temp
        for _ in range(_TRIES):
            if self._start_head(cpus, jobs):
                return
            self.close()
        raise AssertionError("Ray's head does not start")

    def _start_head(self, cpus: int, jobs: bool) -> bool:
        self.port, self.dashboard = workers.free_port(), workers.free_port()
        self.environment = {**self._environment, "RAY_ADDRESS": f"{ADDRESS}:{self.port}"}
        head = self._start_node(
            cpus, "--head", f"--port={self.port}", f"--dashboard-host={ADDRESS}", f"--dashboard-port={self.dashboard}",
            f"--ray-client-server-port={workers.free_port()}", f"--temp-dir={self._temp}",
            f"--include-dashboard={jobs}",
        )  # fmt: skip
        port, what = (self.dashboard, "Ray's job server") if jobs else (self.port, "Ray's head")
        commands.wait_for(lambda: workers.listens(port) or head.poll() is not None, 120, what)
        if head.poll() is not None:
            return False
        self._observer = self._run([sys.executable, "-c", _OBSERVER], self.environment)
        return len(self.node_ids()) == 1

    def _start_node(self, cpus: int, *options: str) -> subprocess.Popen[str]:
        command = [*RAY, "start", "--block", f"--num-cpus={cpus}", f"--node-ip-address={ADDRESS}", *options]
        # Of its own: the usual one may belong to another cluster on this machine, and jobs then find no agent.
        command.append(f"--dashboard-agent-listen-port={workers.free_port()}")
        return self._run(command, self._environment)

    def _run(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._running.append(process)
        return process

    def join(self) -> subprocess.Popen[str]:
        """Start one more node, with one CPU, and wait until the others know it."""
        before = len(self.node_ids())
        for _ in range(_TRIES):
            node = self._start_node(1, f"--address={ADDRESS}:{self.port}")
            commands.wait_for(
                lambda node=node: len(self.node_ids()) > before or node.poll() is not None, 120, "a node to join"
            )
            if node.poll() is None:
                return node
        raise AssertionError("no node could join")

    def node_ids(self) -> list[str]:
        """Ids of the nodes that are alive, that of the head first."""
        assert self._observer.stdin
        assert self._observer.stdout
        with contextlib.suppress(BrokenPipeError):
            self._observer.stdin.write("\n")
            self._observer.stdin.flush()
        return self._observer.stdout.readline().split()

    def ray(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Ray's as a user of the cluster."""
        return subprocess.run(
            [*RAY, *words], env={**self.environment, **environment}, capture_output=True, text=True, timeout=300
        )

    def drain(self, node_id: str) -> None:
        """Announce that a node is about to be taken away, as a provider of spare capacity does."""
        done = self.ray(
            "drain-node", f"--address={ADDRESS}:{self.port}", f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", "--deadline-remaining-seconds=600",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, node: subprocess.Popen[str]) -> None:
        """End a node without a warning, with all that runs on it. (Asked to end, it takes half a minute.)"""
        for pid in [*commands.descendants(node.pid), node.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.communicate(timeout=60)
        self._running.remove(node)

    def close(self) -> None:
        for process in self._running[::-1]:
            self.kill(process)


@contextlib.contextmanager
def ray_cluster(tmp_path: Path, cpus: int = 1, jobs: bool = False, **environment: str) -> Iterator[RayCluster]:
    """A cluster whose head has ``cpus``; gone at the end.

    jobs: it takes jobs, with Ray's dashboard. environment: variables of Ray, and so of all workers.
    """
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    # Of its own: a job learns its cluster's address from a file there, where the newest cluster writes its own. Short,
    # because sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        cluster = RayCluster(token, cpus, temp, jobs, environment)
        try:
            yield cluster
        finally:
            cluster.close()

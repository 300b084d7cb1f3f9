"""The processes that a task of a job starts on its node, and their end."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from cluster import processes
from tests.support.commands import ROOT


def test_what_becomes_a_daemon_is_ended_too():
    """In a process of its own, which becomes the parent of orphans."""
    code = (
        "import os, subprocess; from cluster import processes, ray_node; processes.adopt_orphans(); "
        "subprocess.run(['sh', '-c', 'setsid sleep 600 & exit 0']); subprocess.Popen(['sleep', '600']); "
        "print(*processes.descendants(os.getpid()), flush=True); ray_node.end_descendants(); "
        "print(len(processes.descendants(os.getpid())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    ids, left = done.stdout.splitlines()
    assert (len(ids.split()), left) == (2, "0"), done.stderr
    assert not any(processes.alive(int(pid)) for pid in ids.split())


def test_a_node_that_is_slow_is_started_again(tmp_path):
    """Ray's own limit of 30 s for a node is short on a busy one. In a process of its own, which ends all below it."""
    stub = tmp_path / "ray" / "scripts"
    stub.mkdir(parents=True)
    for package in (stub, stub.parent):
        (package / "__init__.py").touch()
    (stub / "scripts.py").write_text(
        "import os, pathlib, sys, time\n"
        f"tries = pathlib.Path({str(tmp_path / 'tries')!r})\n"
        "n = len(tries.read_text()) if tries.exists() else 0\n"
        "tries.write_text('x' * (n + 1))\n"
        "if n < int(os.environ['FAILURES']): sys.exit('The current node timed out during startup.')\n"
        "print('Ray runtime started.', flush=True)\n"
        "time.sleep(600)\n"
    )
    code = (
        "import pathlib, sys; from cluster import processes, ray_node; processes.adopt_orphans(); "
        "place = pathlib.Path(sys.argv[1]); "
        "node = ray_node.RayNode(place, place / 'log', place / 'token', '127.0.0.1', 1, *sys.argv[2:])\n"
        "try:\n    processes.wait_for(node.up, 120)\n    print('up', node.attempts, node.gcs_address)\n"
        "except ray_node.RayEnded as error:\n    print(error)\n"
        "ray_node.end_descendants()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for failures, head, answer in (
        (2, ["127.0.0.1:9"], "up 3 127.0.0.1:9"),
        # A head's address is known as soon as it is up: Ray's own file of it comes later.
        (1, [], r"up 2 127.0.0.1:\d+$"),
        (9, [], "Ray ended on .*timed out during startup"),
    ):
        (tmp_path / "tries").unlink(missing_ok=True)
        (tmp_path / "log").unlink(missing_ok=True)
        environment["FAILURES"] = str(failures)
        command = [sys.executable, "-c", code, str(tmp_path), *head]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert re.match(answer, done.stdout), done.stdout + done.stderr

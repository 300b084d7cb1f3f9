"""Nodes that join a run, leave it with a warning, and die; on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from tests.support import commands, workers
from tests.support.clusters import RayCluster, ray_cluster
from tests.support.runs import check_files

OPTIONS = {
    "model__factory": "tests.support.user_code:slow", "data__subset": 1000, "batch_size": 10, "epochs": 3,
    "dtype": "float64", "margin_update": "online", "attack__steps": 5, "attack__bisections": 2,
    "eval__steps": 2, "eval__noise": (0.0, 0.1), "checkpoint_every": 20,
}  # fmt: skip
# Ray looks every 60 s whether to change the number of workers. Nothing else is different from ima_dist.train.
IMPATIENT = (
    "import functools, sys, ray.train; from ima_dist import train; "
    "ray.train.ScalingConfig = functools.partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=1.0); "
    "sys.exit(train.main(sys.argv[1:]))"
)


def flags() -> list[str]:
    words = []
    for name, value in OPTIONS.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += ["--" + name.replace("__", ".").replace("_", "-"), text]
    return words


class Watched:
    """A run of ``ima_dist.train`` in the background."""

    def __init__(self, cluster: RayCluster, path: Path, *words: str) -> None:
        self.run = RunDir(path)
        self.log = path.with_suffix(".txt")
        with self.log.open("w") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-c", IMPATIENT, *words],
                env=cluster.environment, cwd=path.parent, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def progress(self) -> dict[str, Any]:
        assert self.driver.poll() is None, self.log.read_text()
        return read_json(self.run.progress_path) or {}

    def wait_for(self, workers: int, seconds: float, beyond: int = 0) -> dict[str, Any]:
        """Wait until so many workers train, and ``beyond`` samples are done; returns that progress."""
        seen: dict[str, Any] = {}

        def there() -> bool:
            nonlocal seen
            seen = self.progress()
            return seen.get("workers") == workers and seen["samples_done"] > beyond

        commands.wait_for(there, seconds, f"{workers} workers ({self.log.read_text()})")
        return seen

    def ended(self) -> int:
        return self.driver.wait(timeout=240)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    config, _ = workers.start_run(path, "moons", **OPTIONS)
    workers.train(config, path)
    return config, workers.final_state(config, path)


def same(undisturbed, path: Path) -> None:
    config, (weights, margins) = undisturbed
    weights_2, margins_2 = workers.final_state(config, path)
    assert workers.largest_difference(weights, weights_2) < 1e-9
    assert float((margins - margins_2).abs().max()) < 1e-9
    check_files(RunDir(path), epochs=3, samples=100)


@pytest.mark.slow
def test_a_node_joins_and_dies_and_the_result_is_the_same(tmp_path, undisturbed):
    path, fast = tmp_path / "run", tmp_path / "fast"
    with ray_cluster(tmp_path, SLOW_UNTIL=str(fast)) as cluster:
        run = Watched(cluster, path, "moons", *flags(), "--workers", "1-2", "--out", str(path))
        alone = run.wait_for(1, 240)
        node = cluster.join()
        while (now := run.progress()).get("workers", 1) == 1:
            alone = now
            time.sleep(0.2)
        # The checkpoint was written for the occasion: nothing was done twice.
        assert now["samples_done"] >= alone["samples_done"]
        mark = run.run.lock_path.read_text()
        done = run.wait_for(2, 240, beyond=now["samples_done"] + 200)["samples_done"]
        assert run.run.lock_path.read_text() == mark

        cluster.kill(node)
        now = run.wait_for(1, 240)
        assert now["samples_done"] >= done - 20 * 10
        assert run.run.lock_path.read_text() != mark
        fast.touch()
        assert run.ended() == 0, run.log.read_text()
    text = run.log.read_text()
    assert "Continuing with 2 workers." in text
    assert "Continuing with the remaining workers." in text
    assert "Continuing with 1 worker." in text
    assert run.run.config().workers == "1-2"
    same(undisturbed, path)


@pytest.mark.slow
def test_a_drained_node_is_left_with_a_checkpoint(tmp_path, undisturbed):
    """A fixed number of workers ends with status 75; with a range the run goes on with those that are left."""
    path, fast = tmp_path / "run", tmp_path / "fast"
    with ray_cluster(tmp_path, SLOW_UNTIL=str(fast)) as cluster:
        node = cluster.join()
        fixed = [word for word in flags() if word not in ("--checkpoint-every", "20")]
        run = Watched(cluster, path, "moons", *fixed, "--workers", "2", "--out", str(path))
        done = run.wait_for(2, 240, beyond=50)["samples_done"]
        cluster.drain(cluster.node_ids()[1])
        assert run.ended() == 75, run.log.read_text()
        assert "A node is being drained." in run.log.read_text()
        assert run.run.status == "interrupted"
        [saved] = run.run.checkpoints_dir.glob("epoch=0000-step=*")
        assert int(saved.name[-6:]) * 10 >= done

        cluster.kill(node)
        commands.wait_for(lambda: len(cluster.node_ids()) == 1, 120, "the node to be missed")
        cluster.join()
        done = (read_json(run.run.progress_path) or {})["samples_done"]
        run = Watched(cluster, path, "--resume", str(path), "--workers", "1-2")
        done = run.wait_for(2, 240, beyond=done)["samples_done"]
        cluster.drain(cluster.node_ids()[1])
        assert run.wait_for(1, 240)["samples_done"] >= done
        fast.touch()
        assert run.ended() == 0, run.log.read_text()
        # Ray may change their number before a worker has heard of the drain: either way the run says that it goes on.
        assert "Continuing with" in run.log.read_text()
    same(undisturbed, path)

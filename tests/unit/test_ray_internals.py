"""The private parts of Ray that are used: all in one file, with a warning for other versions than the tested one."""

from __future__ import annotations

import importlib
import os
import re

import pytest
import ray

from ima_dist.launch.cluster import _undrained, set_environment
from tests.support.commands import ROOT

set_environment()
from ima_dist.worker import ray_internals  # noqa: E402

PRIVATE = re.compile(r"\bray(\.\w+)*\._(?!_)\w+|\bray\.train\.v2\._internal|from ray\._|\b_base_exc\b")


def test_only_one_file_uses_private_parts():
    found = {
        str(path.relative_to(ROOT))
        for folder in ("ima_dist", "cluster")
        for path in (ROOT / folder).rglob("*.py")
        if PRIVATE.search(path.read_text(encoding="utf-8"))
    }
    # workers.py reads an attribute of an exception whose class is listed.
    assert found == {"ima_dist/worker/ray_internals.py", "ima_dist/launch/workers.py"}


@pytest.mark.parametrize("name", ray_internals.USED)
def test_every_part_that_is_listed_exists(name):
    words = name.split(".")
    for i in range(len(words) - 1, 0, -1):
        try:
            there = importlib.import_module(".".join(words[:i]))
        except ImportError:
            continue
        for word in words[i:]:
            there = getattr(there, word)
        return
    raise AssertionError(name)


def test_other_versions_are_warned_about():
    assert ray_internals.warning(f"{ray_internals.TESTED}.7") is None
    assert ray_internals.warning(ray.__version__) is None
    sentence = ray_internals.warning("2.61.0") or ""
    assert sentence.startswith("Ray 2.61.0 is installed, but ima_dist uses private parts of Ray (ControllerCallback, ")
    assert sentence.endswith("install ray==2.60.*.")


def test_a_cluster_of_ones_own_leaves_the_watch_for_drained_nodes_to_the_next(monkeypatch):
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    monkeypatch.delenv(name, raising=False)
    with _undrained():
        assert os.environ[name] == "0"
    assert name not in os.environ
    monkeypatch.setenv(name, "1")
    with _undrained():
        assert os.environ[name] == "1"
    assert os.environ[name] == "1"


def test_daemons_of_a_cluster_of_ones_own_are_killed_without_a_wait(monkeypatch):
    """Ray asks each of them to exit and waits for a second, but SIGTERM is blocked in them."""
    asked = []

    class Node:
        def kill_all_processes(self, check_alive: bool = True, allow_graceful: bool = False) -> None:
            asked.append((check_alive, allow_graceful))

    node = Node()
    monkeypatch.setattr(ray_internals.driver, "_global_node", node)
    ray_internals.end_daemons_at_once()
    node.kill_all_processes(check_alive=False, allow_graceful=True)
    assert asked == [(False, False)]
    monkeypatch.setattr(ray_internals.driver, "_global_node", None)
    ray_internals.end_daemons_at_once()

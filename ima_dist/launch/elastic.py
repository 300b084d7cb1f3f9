"""Workers that come and go while a run goes on (``--workers MIN-MAX``), and nodes that are about to leave.

Ray looks from time to time how many workers the cluster has room for, and starts all of them anew when that has
changed. They continue from the run's newest checkpoint; what is here makes sure that it is one of just before,
and that Ray does not count on nodes that are dead or being drained.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ScalingDecision
from ray.train.v2.api.config import ScalingConfig

# Seconds that workers have for the checkpoint before a change of their number.
_SAVING = 60.0
# Seconds to wait for nodes while there are too few.
_PATIENCE = 60.0


class TooFew(Exception):
    """The cluster has had too few workers for a while. One sentence."""


class UsableNodes(ElasticScalingPolicy):
    """Ray's policy, without the nodes that it would wait for in vain.

    Ray counts nodes that are being drained, where nothing starts any more, and for up to 20 s those that have
    died. With too few nodes it asks for ever, without a pause.
    """

    def __init__(self, scaling_config: ScalingConfig) -> None:
        super().__init__(scaling_config)
        self._waiting_since: float | None = None

    def _count_possible_workers(self, reserved_resources: dict[str, Any]) -> int:
        usable = {node["NodeID"] for node in usable_nodes()}
        return super()._count_possible_workers({k: v for k, v in reserved_resources.items() if k in usable})

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        decision = super().make_decision_for_non_running_worker_group()
        if hasattr(decision, "num_workers"):
            self._waiting_since = None
            return decision
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        least = self.scaling_config.min_workers
        if now - self._waiting_since > _PATIENCE:
            raise TooFew(f"the cluster has had room for fewer than {least} workers for {_PATIENCE:.0f} s")
        time.sleep(1.0)
        return decision


class CheckpointFirst(ControllerCallback):
    """Before Ray ends the workers to change their number, they write a checkpoint.

    Worker 0 removes the file ``request`` when it is written. Runs in Ray's controller, beside the driver.
    """

    def __init__(self, request: Path) -> None:
        self.request = request

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, ResizingState):
            return
        until = time.monotonic() + _SAVING
        with contextlib.suppress(OSError):
            self.request.touch()
            while self.request.exists() and time.monotonic() < until:
                time.sleep(0.1)
            self.request.unlink(missing_ok=True)


class Trainer(TorchTrainer):
    """TorchTrainer whose policy, if the number of workers may change, is ``UsableNodes``."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        scaling: Any = self.scaling_config
        if scaling.elasticity_enabled:
            arguments["scaling_policy"] = UsableNodes(scaling)
        return super()._initialize_and_run_controller(**arguments)  # type: ignore[misc]


def usable_nodes() -> list[dict[str, Any]]:
    """What ``ray.nodes()`` says of the nodes on which workers can be started: alive, and not being drained."""
    draining = ray._private.state.state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]

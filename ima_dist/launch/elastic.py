"""Workers that come and go during a run (``--workers MIN-MAX``), and nodes that are about to leave.

From time to time Ray compares the number of workers with what the cluster has room for, and replaces all of them when
that has changed. They continue from the run's newest checkpoint. This module makes sure that the checkpoint is written
just before, and that Ray does not count on nodes that are dead or being drained.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig, TorchTrainer

from ima_dist.launch.network_interface import name_interface
from ima_dist.rundir.lease import LeaseLost
from ima_dist.worker import ray_internals

# Seconds that workers have for the checkpoint before their number changes.
_SAVING = 60.0
# Seconds that a worker waits for the others in a collective: in an evaluation their shares may differ by hours. A dead
# worker is noticed by Ray, long before.
_COLLECTIVES = 24 * 3600
# Seconds to wait for nodes while there are too few.
_PATIENCE = 60.0


class TooFew(Exception):
    """The cluster has had room for too few workers for a while. One sentence."""


class UsableNodes(ray_internals.ElasticScalingPolicy):
    """Ray's policy, restricted to nodes on which workers can start.

    Ray also counts nodes that are being drained, and for up to 20 s those that have died. With too few nodes it would
    ask for ever, without a pause.
    """

    def __init__(self, scaling_config: ray.train.ScalingConfig) -> None:
        super().__init__(scaling_config)  # type: ignore[arg-type]
        self._waiting_since: float | None = None

    def _count_possible_workers(self, reserved_resources: dict[str, Any]) -> int:
        usable = {node["NodeID"] for node in usable_nodes()}
        return super()._count_possible_workers({k: v for k, v in reserved_resources.items() if k in usable})

    def make_decision_for_non_running_worker_group(self) -> ray_internals.ScalingDecision:
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


class Unannounced(ray_internals.FixedScalingPolicy):
    """Ray's policy for a fixed number of workers, without the actor in which Ray Train announces what it needs.

    Ray's autoscaler sees the pending placement group anyway, and the actor takes seconds to start.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class CheckpointFirst(ray_internals.ControllerCallback):
    """Lets the workers write a checkpoint before Ray replaces them to change their number.

    Worker 0 removes the file ``request`` when the checkpoint is written.
    check: raises LeaseLost if the run is another process's, whose workers must not be asked.
    """

    def __init__(self, request: Path, check: Callable[[], object]) -> None:
        self.request, self.check = request, check

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, ray_internals.ResizingState):
            return
        until = time.monotonic() + _SAVING
        with contextlib.suppress(OSError, LeaseLost):
            self.check()
            self.request.touch()
            while self.request.exists() and time.monotonic() < until:
                time.sleep(0.1)
            self.check()
            self.request.unlink(missing_ok=True)


def _name_interface_of_node() -> None:
    name_interface(ray.util.get_node_ip_address())


class _Backend(ray_internals.TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_name_interface_of_node)
        super().on_start(worker_group, backend_config)


class NodeInterface(TorchConfig):
    """TorchConfig whose workers communicate over the interface that has their node's address in the Ray cluster."""

    def __init__(self) -> None:
        super().__init__(timeout_s=_COLLECTIVES)

    @property
    def backend_cls(self) -> type:
        return _Backend


@contextlib.contextmanager
def _as_no_actor() -> Iterator[None]:
    """Let Ray Train's question for the actor that it runs in be answered with None."""
    context: Any = ray_internals.RuntimeContext
    usual = context.current_actor
    context.current_actor = None
    try:
        yield
    finally:
        context.current_actor = usual


class _Workers(ray_internals.WorkerGroup):
    def _init_train_context_on_workers(self, *arguments: Any) -> None:
        # They would ask the controller only for checkpoints that they have reported to Ray: ours report none.
        with _as_no_actor():
            super()._init_train_context_on_workers(*arguments)


class _Controller(ray_internals.TrainController):
    worker_group_cls = _Workers


class Trainer(TorchTrainer):
    """TorchTrainer with our policies, and without the actors that serve nothing here: each starts for seconds.

    Ray's controller is one of them. Here it runs in the thread that calls ``fit``, in which it ends with the driver.
    """

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        scaling: Any = self.scaling_config
        arguments["scaling_policy"] = (UsableNodes if scaling.elasticity_enabled else Unannounced)(scaling)
        unused = (ray_internals.DatasetsCallback, ray_internals.PlacementGroupCleanerCallback)
        arguments["callbacks"] = [c for c in arguments["callbacks"] if not isinstance(c, unused)]
        controller = _Controller(**arguments)
        try:
            asyncio.run(controller.run())
        finally:
            # What an actor takes with it when it fails.
            workers = controller.get_worker_group()
            if workers is not None and not controller.get_state().is_terminal():
                with contextlib.suppress(Exception):
                    workers.abort()
        return controller.get_result()


def usable_nodes() -> list[dict[str, Any]]:
    """The entries of ``ray.nodes()`` on which workers can start: alive, and not being drained."""
    draining = ray_internals.cluster_state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]

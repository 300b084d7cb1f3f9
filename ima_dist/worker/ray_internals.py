"""The private parts of Ray that ima_dist uses, and what for; no other file imports any.

They may change with every version of Ray. (Those of submitit are used only in ``cluster``.)
"""

# ruff: noqa: F401 (other files import these names from here)

import ray

from ima_dist.config.errors import ConfigError

TESTED = "2.60"

USED = {
    # The driver, before it joins a cluster: ray.init fails only after half a minute of warnings, without the reason.
    "ray._private.authentication.authentication_token_setup.ensure_token_if_auth_enabled": "find the token",
    "ray._raylet.GcsClient": "ask whether the cluster accepts it",
    # The driver, when it has started a cluster: SIGTERM is blocked in its daemons, so that Ray waits a second for each.
    "ray._private.worker._global_node": "end them at once",
    # The driver: Ray Train has no public hook for where its controller runs, for its policy, and for its helpers.
    "ray.train.torch.TorchTrainer._initialize_and_run_controller": "give the controller our policy and fewer helpers",
    "ray.train.v2._internal.execution.controller.TrainController": "run it in the driver, which spares 5 s",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup": "start workers whose controller is no actor",
    "ray.runtime_context.RuntimeContext.current_actor": "tell Ray Train so",
    "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy": "count only nodes that can start workers",
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy": "do without a process that asks for nodes",
    "ray.train.v2._internal.callbacks.DatasetsCallback": "do without a process for Ray Data, which nothing here uses",
    "ray.train.v2._internal.callbacks.placement_group_callback.PlacementGroupCleanerCallback": "do without a process "
    "that removes placement groups, as Ray itself does when their creator dies",
    "ray.train.v2._internal.execution.scaling_policy.ScalingDecision": "type of what the policy returns",
    "ray.train.v2._internal.execution.callback.ControllerCallback": "save a checkpoint before workers are replaced",
    "ray.train.v2._internal.execution.controller.state.ResizingState": "notice that they are about to be",
    "ray._private.state.state": "list the nodes that are being drained, which ray.nodes() does not tell",
    # The driver, after workers have failed: the public exceptions hold only text.
    "ray.train.v2._internal.exceptions.WorkerHealthCheckFailedError": "tell a dead worker from those that miss it",
    "ray.train.v2._internal.exceptions.UserExceptionWithTraceback": "find the exception that a worker raised",
    # On the workers, before torch.distributed starts: the public configuration cannot run code there.
    "ray.train.torch.config._TorchBackend": "name the network interface to gloo and NCCL",
    # On a worker, between steps: the public get_preemption_info is a barrier over all workers.
    "ray.train.v2._internal.execution.context.get_train_context": "notice that a node is being drained",
}


def warning(version: str) -> str | None:
    """A sentence for the user if this version of Ray has not been tested, else None."""
    if version.split(".")[:2] == TESTED.split("."):
        return None
    names = ", ".join(sorted({name.rsplit(".", 1)[1] for name in USED}))
    return (
        f"Ray {version} is installed, but ima_dist uses private parts of Ray ({names}) and has been tested only with "
        f"Ray {TESTED}: if training fails inside Ray, install ray=={TESTED}.*."
    )


def end_daemons_at_once() -> None:
    """Let ``ray.shutdown`` kill the daemons of the cluster that this process has started, without asking them first."""
    node = driver._global_node
    if node is not None:
        kill = node.kill_all_processes
        node.kill_all_processes = lambda *_, **__: kill(check_alive=False)


try:
    import ray._private.worker as driver
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._private.state import state as cluster_state
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.runtime_context import RuntimeContext
    from ray.train.torch.config import _TorchBackend as TorchBackend
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.controller.state import ResizingState
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        FixedScalingPolicy,
        ScalingDecision,
    )
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
except ImportError as error:
    raise ConfigError(
        f"Ray {ray.__version__} lacks a part that ima_dist uses ({error}): install ray=={TESTED}.*."
    ) from error

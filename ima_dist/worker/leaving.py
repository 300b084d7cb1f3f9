"""Learning that a node is about to leave the cluster."""

from __future__ import annotations

from ima_dist.worker.ray_internals import get_train_context


def node_is_leaving() -> bool:
    """True on a worker if a node with workers of its group is being drained. Costs nothing.

    Ray Train watches for that and tells each worker.
    """
    return get_train_context().preemption_context.preemption_info is not None

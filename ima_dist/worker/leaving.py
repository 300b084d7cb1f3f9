"""Whether a node of this group of workers is about to leave the cluster."""

from __future__ import annotations

from ima_dist.worker.ray_internals import get_train_context


def node_is_leaving() -> bool:
    """On a worker: whether a node with workers of this group is being drained. Costs nothing: Ray Train tells each."""
    return get_train_context().preemption_context.preemption_info is not None

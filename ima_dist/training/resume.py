"""Continuing a run from the newest whole checkpoint in its directory."""

from typing import Any, NamedTuple

from ima_dist.core import distributed
from ima_dist.rundir.directory import RunDir
from ima_dist.training import checkpoint
from ima_dist.training.state import State


class Resumed(NamedTuple):
    """Rows of history.parquet and equilibrium.parquet up to the checkpoint, and a sentence per newer damaged one."""

    history: list[dict[str, Any]]
    equilibrium: list[dict[str, Any]]
    warnings: list[str]


def check_same_data(identity: checkpoint.Identity) -> None:
    """Raise Damaged on all workers if any has loaded different data from worker 0. Collective."""
    digests = distributed.gather_objects(identity.data)
    other = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if other:
        raise checkpoint.Damaged(
            f"Worker {', '.join(other)} has loaded different data from worker 0: give all nodes the same files"
        )


def resume(run: RunDir, identity: checkpoint.Identity, state: State) -> Resumed:
    """Bring a fresh ``state`` to where the run's newest whole checkpoint stands, if there is one. Collective.

    Raises:
        Damaged: checkpoints exist but none is whole and of this configuration and these data.
    """
    if distributed.rank() == 0:
        checkpoint.clear_unfinished(run)
    # Only one worker checks: on shared storage another may not see the newest files yet.
    found, warnings, error = distributed.share_object(_newest(run, identity) if distributed.rank() == 0 else None)
    if error is not None:
        raise checkpoint.Damaged(error)
    if found is None:
        return Resumed([], [], warnings)
    checkpoint.restore(found, state)
    history, equilibrium = run.read_history(), run.read_equilibrium() if state.equilibrium is not None else []
    done = state.position.epoch
    return Resumed(
        [row for row in history if row["epoch"] <= done],
        [row for row in equilibrium if row["epoch"] <= done],
        [f"{damaged}; continuing from {found.path.name}." for damaged in warnings],
    )


def _newest(run: RunDir, identity: checkpoint.Identity) -> tuple[checkpoint.Checkpoint | None, list[str], str | None]:
    try:
        return *checkpoint.newest(run, identity), None
    except checkpoint.Damaged as error:
        return None, [], str(error)

"""Continuing a run from the newest whole checkpoint in its directory."""

from typing import Any

from ima_dist.core import distributed
from ima_dist.rundir.directory import RunDir
from ima_dist.training import checkpoint
from ima_dist.training.state import State

Rows = list[dict[str, Any]]


def check_same_data(identity: checkpoint.Identity) -> None:
    """Raise Damaged on all workers if any has loaded different data from worker 0. Collective."""
    digests = distributed.gather_objects(identity.data)
    other = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if other:
        raise checkpoint.Damaged(
            f"Worker {', '.join(other)} has loaded different data from worker 0: give all nodes the same files"
        )


def resume(run: RunDir, identity: checkpoint.Identity, state: State) -> tuple[Rows, Rows, list[str]]:
    """Bring a fresh ``state`` to where the run's newest whole checkpoint stands, if there is one. Collective.

    Returns the rows of history.parquet and of equilibrium.parquet up to the checkpoint, and a sentence for each newer
    checkpoint that is damaged.

    Raises:
        Damaged: checkpoints exist but none is whole and of this configuration and these data.
    """
    distributed.together(lambda: checkpoint.clear_unfinished(run))
    # Only one worker checks: on shared storage another may not see the newest files yet.
    found, damaged = distributed.together(lambda: checkpoint.newest(run, identity))
    if found is None:
        return [], [], []
    checkpoint.restore(found, state)
    done = state.position.epoch
    history = [row for row in run.read_history() if row["epoch"] <= done]
    equilibrium = run.read_equilibrium() if state.equilibrium is not None else []
    warnings = [f"{sentence}; continuing from {found.path.name}." for sentence in damaged]
    return history, [row for row in equilibrium if row["epoch"] <= done], warnings

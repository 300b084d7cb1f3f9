"""Continuing a run from the newest whole checkpoint in its directory."""

import platform
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError

from ima_dist.core import distributed
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import wait_for
from ima_dist.training import checkpoint
from ima_dist.training.aside import clear_unfinished
from ima_dist.training.state import State

Rows = list[dict[str, Any]]


def check_same_data(digest: str) -> None:
    """Raise Damaged on all workers if any has loaded data with another digest than worker 0. Collective."""
    loaded = distributed.gather_objects((digest, platform.node()))
    other = [f"{rank} on {host}" for rank, (found, host) in enumerate(loaded) if found != loaded[0][0]]
    if other:
        raise checkpoint.Damaged(
            f"Worker {', '.join(other)} has loaded different data from worker 0 on {loaded[0][1]}: "
            "give all nodes the same files"
        )


def resume(run: RunDir, identity: checkpoint.Identity, state: State) -> tuple[Rows, Rows, list[str]]:
    """Bring a fresh ``state`` to where the run's newest whole checkpoint stands, if there is one. Collective.

    Returns, for worker 0 to write them again, the rows of history.parquet and of equilibrium.parquet up to the
    checkpoint ([] on the others), and a sentence for each newer checkpoint that is damaged.

    Raises:
        Damaged: checkpoints exist but none is whole and of this configuration and these data; or on a single worker,
            which cannot read the one that worker 0 has found whole.
    """
    distributed.together(lambda: clear_unfinished(run))
    # Only one worker checks: on shared storage another may not see the newest files yet.
    found, damaged = distributed.together(lambda: checkpoint.newest(run, identity))
    if found is None:
        return [], [], []
    _restore(run, found, state, checkpoint.restore)
    done = state.position.epoch
    rows: list[Rows] = [[], []]
    if distributed.rank() == 0:
        rows = [run.read_history(), run.read_equilibrium() if state.equilibrium is not None else []]
    history, equilibrium = ([row for row in part if row["epoch"] <= done] for part in rows)
    return history, equilibrium, [f"{sentence}; continuing from {found.path.name}." for sentence in damaged]


def go_back(run: RunDir, identity: checkpoint.Identity, state: State, epoch: int) -> None:
    """Give ``state`` the weights and margins after ``epoch`` complete epochs; all else stays. Collective.

    Raises Damaged.
    """
    found = distributed.together(lambda: checkpoint.result_of(run, identity, epoch))
    _restore(run, found, state, checkpoint.restore_result)


def _restore(
    run: RunDir, found: checkpoint.Checkpoint, state: State, act: Callable[[checkpoint.Checkpoint, State], None]
) -> None:
    """Every worker reads what only worker 0 has checked: on shared storage it may see it later, or not."""
    try:
        wait_for(checkpoint.files(run, found))
        act(found, state)
    except (OSError, ValueError, SafetensorError) as error:
        who = f"worker {distributed.rank()} on {platform.node()}"
        raise checkpoint.Damaged(f"{found.path} was found whole, but {who} cannot read it ({error})") from error

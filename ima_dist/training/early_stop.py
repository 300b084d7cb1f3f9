"""Early stopping: no better robust accuracy on validation samples (``--patience N``), or no margin that grows (AME)."""

from typing import Any, NamedTuple

from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.rundir.directory import RunDir
from ima_dist.training import checkpoint
from ima_dist.training.resume import go_back
from ima_dist.training.state import State

# Epochs without a margin that grows after which AME ends, as in the code that its authors released.
_STILL = 5


class Stopped(NamedTuple):
    """after: the last epoch that was trained. best: that of the result, for --patience the first one with the highest
    robust accuracy."""

    after: int
    best: int


def stopped(history: list[dict[str, Any]], patience: int | None, epochs: int) -> Stopped | None:
    """Whether a training of so many ``epochs`` ends after those in ``history``, its rows in order; None if not."""
    if patience is None or not history or history[-1]["epoch"] >= epochs:
        return None
    best = max(history, key=lambda row: float(row["val_robust_accuracy"]))["epoch"]
    after = history[-1]["epoch"]
    return Stopped(after, best) if after - best >= patience else None


def settled(history: list[dict[str, Any]], config: Config) -> Stopped | None:
    """The end of a training with ``--margin-rule ame`` whose margins have stopped growing; None if not."""
    last = history[-_STILL:]
    if config.margins_bounded or len(last) < _STILL or last[-1]["epoch"] >= config.epochs:
        return None
    after = last[-1]["epoch"]
    return None if any(row["margins_grown"] for row in last) else Stopped(after, after)


def ended(history: list[dict[str, Any]], config: Config) -> Stopped | None:
    """Whether the training ends after the epochs in ``history``, its rows in order, before the last; None if not."""
    return stopped(history, config.patience, config.epochs) or settled(history, config)


def ends_early(
    run: RunDir, identity: checkpoint.Identity, state: State, history: list[dict[str, Any]], config: Config
) -> bool:
    """Whether the training ends here; then weights and margins of its best epoch become those of the last one.

    So everything that looks for the result of a run finds it after ``config.epochs``. Collective; ``history`` is that
    of worker 0. Raises Damaged.
    """
    if config.patience is None and config.margins_bounded:
        return False
    found = distributed.together(lambda: ended(history, config))
    if found is None:
        return False
    go_back(run, identity, state, found.best)
    state.begin_epoch(config.epochs)
    checkpoint.save(run, identity, state)
    return True

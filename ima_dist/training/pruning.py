"""Which checkpoints are kept, and what of them."""

import re
import shutil
from pathlib import Path

from ima_dist.rundir.directory import RunDir
from ima_dist.training.state import Position

#: The epochs, counted from the newest, whose optimiser states are kept.
KEEP = 3


def place_in_run(path: Path) -> tuple[int, int]:
    """(epoch, step) in the name of a checkpoint directory; (-1, 0) for a name that is none."""
    match = re.fullmatch(r"epoch=(\d+)(?:-step=(\d+))?", path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, 0)


def prune(run: RunDir, position: Position) -> None:
    """Remove what the checkpoint at ``position``, which has just been written, makes superfluous."""
    whole = sorted((p for p in run.checkpoints_dir.glob("epoch=*") if "-step=" not in p.name), key=place_in_run)
    partial = {place_in_run(p): p for p in run.checkpoints_dir.glob("epoch=*-step=*")}
    now = (position.epoch, position.step)
    before = max((place for place in partial if place < now), default=None)
    epoch_before = max((place for place in partial if place[0] < position.epoch), default=None)
    for place, path in partial.items():
        if place not in (now, before, epoch_before):
            run.check_lease()  # or it may be the successor's
            shutil.rmtree(path, ignore_errors=True)
    run.check_lease()
    for path in whole[:-KEEP]:
        run.remove(path / "optimizer.safetensors")


def clear_partial(run: RunDir) -> None:
    """Remove the checkpoints within an epoch once training is complete; for the run's only writer."""
    for path in run.checkpoints_dir.glob("epoch=*-step=*"):
        run.check_lease()
        shutil.rmtree(path, ignore_errors=True)

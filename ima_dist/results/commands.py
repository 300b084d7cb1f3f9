"""The commands for what one may want of a run next."""

import shlex

from ima_dist.config.schema import EXTERNAL
from ima_dist.rundir.curves import epochs_of
from ima_dist.rundir.run import Run


def _command(module: str, *words: str) -> str:
    return shlex.join(["python", "-m", f"ima_dist.{module}", *words])


def continue_command(run: Run) -> str:
    """Go on from the last checkpoint, or, for a network trained elsewhere, with its evaluation."""
    path = str(run.dir.path)
    return _command("evaluate", path) if run.options["method"] == EXTERNAL else _command("train", "--resume", path)


def evaluate_command(run: Run) -> str:
    """Attack the network once more, with the strictest attack that has no parts of other people's."""
    return _command("evaluate", str(run.dir.path), "--attack", "worst")


def export_command(run: Run) -> str:
    """Export the network that was evaluated last, to ``exports`` in the working directory."""
    epochs = epochs_of(run.points)
    words = ["--epoch", str(epochs[-1])] if epochs else []
    return _command("export", str(run.dir.path), *words, "--to", f"exports/{run.dir.path.name}")

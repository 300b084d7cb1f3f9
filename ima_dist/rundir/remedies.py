"""What to do about a damaged file, and what is lost with it."""

import shlex
from pathlib import Path

_COPY = "restore it from a copy"
_AGAIN = (
    _COPY + ", or delete it, which loses {what} until the attacks are evaluated again: python -m ima_dist.evaluate "
)
# By the file's name. What is not here is not made again by any command.
_REMEDIES = {
    "history.parquet": _COPY
    + ", or delete it, which loses the losses and accuracies of the epochs trained so far for good: no rule can then "
    "select these epochs, but their weights stay",
    "equilibrium.parquet": _COPY + ", or delete it, which loses the diagnostics of the epochs trained so far for good",
    "summary.json": _COPY
    + ", or delete it, which loses what the run has cost so far and what its attacks have warned of; its accuracies "
    "are restored from outcomes.parquet by the next evaluation",
    "outcomes.parquet": _AGAIN.format(what="the answers for single samples") + "{run} --attack …",
    "probabilities.parquet": _AGAIN.format(what="the probabilities of single samples") + "{run} --attack …",
    "certificates.parquet": _AGAIN.format(what="the certified radii") + "{run} --attack smoothing",
    "scores.parquet": "delete it, and make it again: python -m ima_dist.evaluate {run}",
    "audit.parquet": "delete it, and make it again: python -m ima_dist.audit {run}",
    **dict.fromkeys(
        ("noisy.npz", "flips.npz", "extremes.npz"), "delete it, and make it again: python -m ima_dist.evaluate {run}"
    ),
    "boundary.npz": _COPY + ", or delete it, which loses the picture of the decision boundary",
    "checksums.json": _COPY + ", or delete it: then nothing tells whether your modules have changed since the start",
    "mlflow.json": "delete it, and the run is recorded in MLflow as another run",
}


def remedy(path: Path) -> str:
    """What to do about the damaged file ``path``, as the end of a sentence without its full stop."""
    run = path.parent.parent if path.suffix == ".npz" else path.parent
    if path.parent.parent.name == "dataset":
        return "delete it: it is made again from the runs"
    return _REMEDIES.get(path.name, _COPY).replace("{run}", shlex.quote(str(run)))

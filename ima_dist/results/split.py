"""What a run's split into training and test samples keeps apart."""

from ima_dist.config.presets import SPLIT_LEVELS, has_papers_data
from ima_dist.rundir.run import Run


def split_level(run: Run) -> str | None:
    """Words after "split", such as "by sample: groups unknown"; None where nothing is to be said."""
    found = run.summary.get("split_level")
    if isinstance(found, str):
        return found
    # Runs of earlier versions have not stored it.
    return SPLIT_LEVELS.get(run.config.preset) if has_papers_data(run.config) else None

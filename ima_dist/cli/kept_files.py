"""Before a run is continued or evaluated: can the files that it adds to be read, and is anything lost from them?"""

from __future__ import annotations

import contextlib

from ima_dist.cli.entry import shown
from ima_dist.config.errors import complain
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.epochs import lost_figures, with_weights
from ima_dist.rundir.files import read_parquet, read_row_groups
from ima_dist.rundir.lost_points import Lost, lost_points


def check_kept(run: RunDir, config: Config) -> None:
    """Warn, once each, of what is lost from the files that ``run`` adds to; raises ConfigError if one is damaged.

    Found out by the workers, damage would cost the work until then.
    """
    history, points = run.read_history(), run.points()
    run.read_equilibrium()
    for path in (run.probabilities_path, run.certificates_path):
        with contextlib.suppress(FileNotFoundError):
            for _ in read_row_groups(path):
                pass
    lost = None if config.method == EXTERNAL else lost_figures(run, history, config.epochs)
    if lost:
        complain(f"warning: {lost}; only a new training would measure them again.")
    if not run.summary_path.exists() and with_weights(run):
        complain(
            f"warning: {run.summary_path} is missing: what earlier starts cost, what attacks warned of and met, and "
            "their self-tests are lost."
        )
        if run.certificates_path.exists():
            again = f"python -m ima_dist.evaluate {shown(run.path)} --attack smoothing"
            complain(f"warning: {run.summary_path} has no certified accuracies: measure them again with {again}.")
    with contextlib.suppress(FileNotFoundError):
        _say_lost(run, lost_points(read_parquet(run.outcomes_path), points))


def _say_lost(run: RunDir, lost: list[Lost]) -> None:
    for epoch in sorted({one.epoch for one in lost}):
        restored, others = (
            sorted({one.attack for one in lost if one.epoch == epoch and (one.settings is None) is unknown})
            for unknown in (False, True)
        )
        what = f"warning: {run.summary_path} has no accuracies after epoch {epoch} for"
        if restored:
            complain(f"{what} {', '.join(restored)}: they are restored from outcomes.parquet.")
        if others:
            again = f"python -m ima_dist.evaluate {shown(run.path)} --epochs {epoch} --attack {','.join(others)}"
            unknown_how = "outcomes.parquet does not tell how these attacked"
            complain(f"{what} {', '.join(others)}, and {unknown_how}: measure them again with {again}.")

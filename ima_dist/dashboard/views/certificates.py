"""Certified accuracy of smoothed classifiers, apart from that of the networks themselves."""

from ima_dist.dashboard.choosing import choose_runs
from ima_dist.dashboard.parts import INTERVAL, Grid, Note, Part, Plot, Values, with_interval
from ima_dist.dashboard.state import Control, State
from ima_dist.figures.interactive.accuracy import certified_figure
from ima_dist.results.certificates import curve, rows, shown
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection

TITLE = "Certificates"
INTRODUCTION = (
    "Randomised smoothing certifies another classifier than the network: the one that answers with what the network "
    "says to most draws of Gaussian noise. Shares of test samples, with 95 % Wilson intervals; radii in L2."
)
LIVE = False
_SHARE, _BOUNDS = f"share, {INTERVAL}", ("share", "low", "high")


def controls(runs: Collection, state: State) -> list[Control]:
    return [choose_runs(state, [run for run in runs.runs.values() if run.dir.certificates_path.exists()])]


def show(runs: Collection, values: Values) -> list[Part]:
    chosen: list[Run] = [runs.runs[name] for name in values["runs"]]
    found = [(run, entry) for run in chosen for entry in shown(run)]
    if not found:
        missing = "No smoothed classifier has been certified: python -m ima_dist.evaluate RUN_DIR --attack smoothing"
        return [Note(missing)]
    curves = [
        (f"{run.name}, σ {entry.sigma:g}", *curve(run.certificates, entry))
        for run, entry in found
        if run.certificates is not None
    ]
    table = [
        {
            "run": run.name,
            "σ": f"{entry.sigma:g}",
            "draws": entry.draws,
            "α": f"{entry.alpha:g}",
            "samples": entry.samples,
            "abstained": entry.abstained,
            "what": row["what"],
            "radius": None if row["radius"] is None else f"{row['radius']:g}",
            _SHARE: with_interval(row["share"], (row["low"], row["high"])),
            **{name: row[name] for name in _BOUNDS},
        }
        for run, entry in found
        for row in rows(entry)
    ]
    caption = (
        "Share of the test samples whose label is certified within the radius. The numbers are in the table below."
    )
    columns = [name for name in table[0] if name not in _BOUNDS]
    return [
        Plot("certified", "Certified accuracy of the smoothed classifiers", caption, certified_figure(curves)),
        Grid("certificates", "Accuracy of the smoothed classifiers", columns, table, also=_BOUNDS),
    ]

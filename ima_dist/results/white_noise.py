"""How many right answers white noise turns wrong (paper, appendix A)."""

from collections.abc import Iterable

from ima_dist.config.presets import is_the_papers
from ima_dist.config.schema import Config
from ima_dist.results.text import accuracy
from ima_dist.rundir.curves import Point, attack_rows, format_noise

# Appendix A: ce on COVID-19 CT, by noise level.
_PAPERS = {0.05: 0.0275}


def describe(points: Iterable[Point], config: Config) -> str | None:
    """A sentence with the share at each noise level, with the paper's beside it; None without such an evaluation."""
    row = attack_rows(points).get("white-noise", {})
    theirs = _PAPERS if (config.preset, config.method) == ("covid_ct", "ce") and is_the_papers(config) else {}
    found = []
    for level, point in sorted(row.items()):
        if point.turned_wrong is not None:
            paper = f" (paper, appendix A: {accuracy(theirs[level])})" if level in theirs else ""
            count = f"{round(point.turned_wrong * point.samples):,} of {point.samples:,} samples"
            found.append(f"{accuracy(point.turned_wrong)} at {format_noise(level)}, {count}{paper}")
    return f"White noise turns right answers wrong: {'; '.join(found)}." if found else None

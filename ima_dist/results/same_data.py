"""Which runs are of the same data: a name is not enough, as the data behind one's own name may change."""

from collections.abc import Sequence
from typing import Any

from ima_dist.config.presets import data_name_of
from ima_dist.rundir.run import Run

# Where data lie and how they come there; the other options of a data set give other data by design.
_WHERE = ("data.dir", "data.download", "data.source")


def data_sets(runs: Sequence[Run]) -> list[str]:
    """The data set of each run: its name, and with part of its digest if the runs have several data sets of that name.

    Runs with equal options of the data and equal seeds have equal data, or else the name stands for several.
    """
    names = [data_name_of(run.options) for run in runs]
    digests = [run.data_digest for run in runs]
    seen: dict[Any, set[str]] = {}
    for run, name, digest in zip(runs, names, digests, strict=True):
        if digest is not None:
            kept = {k: repr(v) for k, v in run.options.items() if k.startswith("data.") and k not in _WHERE}
            seen.setdefault((name, run.options["seed"], *sorted(kept.items())), set()).add(digest)
    several = {key[0] for key, found in seen.items() if len(found) > 1}
    return [
        f"{name} (data {digest[:6] if digest else 'unknown'})" if name in several else name
        for name, digest in zip(names, digests, strict=True)
    ]

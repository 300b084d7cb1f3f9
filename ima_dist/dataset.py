"""``python -m ima_dist.dataset RESULTS_DIR``: bring the data set of a results directory up to date.

Runs write their rows themselves while they go on; this is for runs that were copied, or made before. What belongs
to runs that are gone is removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ima_dist import config as configuration
from ima_dist.config import ConfigError
from ima_dist.results import dataset
from ima_dist.results.collection import check_inside, find_runs
from ima_dist.results.rundir import read_parquet
from ima_dist.train import EXIT_DONE, existing, guarded, say, shown


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = configuration.OneLineParser(prog="python -m ima_dist.dataset", description=__doc__, allow_abbrev=False)
    parser.add_argument("results", metavar="RESULTS_DIR", help="directory that contains runs")
    root = existing(parser.parse_args(argv).results).absolute()
    if not root.is_dir():
        raise ConfigError(f"{root} is not a directory: name one that contains runs.")
    runs, problems = find_runs(root)
    written = 0
    for name, run in runs.items():
        try:
            check_inside(run)
            if _stamp(root, name) != dataset.stamp_of(run):
                problems += dataset.write_run(root, run)
                written += 1
        except ConfigError as error:
            problems.append(str(error))
    gone = 0
    for kind in dataset.KINDS:
        for file in (root / dataset.FOLDER / kind).glob("*.parquet"):
            if dataset.name_in(file) not in runs:
                file.unlink()
                gone += kind == "runs"
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    say(f"{shown(root / dataset.FOLDER)}: {len(runs)} runs, {written} brought up to date, {gone} removed.")
    return EXIT_DONE


def _stamp(root: Path, name: str) -> str | None:
    try:
        stamp: str = read_parquet(dataset.file_of(root, "runs", name))["stamp"].to_pylist()[0]
    except (ConfigError, FileNotFoundError, KeyError, IndexError):
        return None
    return stamp


if __name__ == "__main__":
    sys.exit(main())

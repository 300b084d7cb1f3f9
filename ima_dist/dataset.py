"""``python -m ima_dist.dataset RESULTS_DIR``: bring the data set of a results directory up to date.

Runs write their rows themselves while they go on; this is for runs that were copied, or made before. What belongs
to runs that are gone is removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ima_dist.cli.entry import EXIT_DONE, guarded, say
from ima_dist.cli.parser import OneLineParser
from ima_dist.cli.paths import existing, shown
from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_parquet
from ima_dist.tracking import tables
from ima_dist.tracking.collection import runs_by_name


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.dataset", description=__doc__, allow_abbrev=False)
    parser.add_argument("results", metavar="RESULTS_DIR", help="directory that contains runs")
    root = existing(parser.parse_args(argv).results).absolute()
    if not root.is_dir():
        raise ConfigError(f"{root} is not a directory: name one that contains runs.")
    runs, problems = runs_by_name(root)
    written = 0
    for name, run in runs.items():
        try:
            if _stamp(root, name) != tables.stamp_of(run):
                problems += tables.write_run(root, run)
                written += 1
        except ConfigError as error:
            problems.append(str(error))
    gone = 0
    for kind in tables.KINDS:
        for file in (root / tables.FOLDER / kind).glob("*.parquet"):
            if tables.name_in(file) not in runs:
                file.unlink()
                gone += kind == "runs"
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    say(f"{shown(root / tables.FOLDER)}: {len(runs)} runs, {written} brought up to date, {gone} removed.")
    return EXIT_DONE


def _stamp(root: Path, name: str) -> str | None:
    try:
        stamp: str = read_parquet(tables.file_of(root, "runs", name))["stamp"].to_pylist()[0]
    except (ConfigError, FileNotFoundError, KeyError, IndexError):
        return None
    return stamp


if __name__ == "__main__":
    sys.exit(main())

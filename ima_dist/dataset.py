"""``python -m ima_dist.dataset RESULTS_DIR``: bring the data set of a results directory up to date.

Runs write their rows themselves as they go; this command adds runs that were copied, or made by an earlier version,
and removes the rows of runs that are gone.
"""

import sys

from ima_dist.cli.entry import existing, guarded, say, shown
from ima_dist.cli.parser import OneLineParser
from ima_dist.config.errors import EXIT_DONE, ConfigError, complain
from ima_dist.tracking import tables
from ima_dist.tracking.collection import update


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.dataset", description=__doc__, allow_abbrev=False)
    parser.add_argument("results", metavar="RESULTS_DIR", help="directory that contains runs")
    root = existing(parser.parse_args(argv).results).absolute()
    if not root.is_dir():
        raise ConfigError(f"{root} is not a directory: give one that contains runs.")
    done = update(root)
    for problem in done.problems:
        complain(f"warning: {problem}")
    say(f"{shown(root / tables.FOLDER)}: {done.runs} runs, {done.written} brought up to date, {done.removed} removed.")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

"""``python -m ima_dist.report RUN_DIR… --out DIR``: finished runs beside the paper, as one HTML file and CSV files.

A RUN_DIR may also be a directory that contains runs, such as runs/jobs.
"""

import sys
from pathlib import Path

from ima_dist.cli.entry import absolute_output, existing, guarded, say, shown
from ima_dist.cli.parser import OneLineParser
from ima_dist.config.errors import EXIT_DONE, complain
from ima_dist.report.write import write_report


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.report", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="finished runs, or directories that contain some")
    parser.add_argument("--out", required=True, metavar="DIR", help="where report.html and the CSV files go")
    arguments = parser.parse_args(argv)
    paths: list[Path] = [existing(path) for path in arguments.runs]
    files, problems = write_report(paths, absolute_output(arguments.out))
    for problem in problems:
        complain(f"warning: {problem}")
    say("\n".join(shown(file) for file in files))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

"""``python -m ima_dist.sweep best DIR --min-clean A``: choose among the finished runs in a directory."""

from __future__ import annotations

import sys

from ima_dist.cli.entry import EXIT_DONE, say
from ima_dist.cli.parser import OneLineParser
from ima_dist.cli.paths import existing
from ima_dist.config.attacks import ATTACKS
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.results.candidates import best_text, rows_of_directory
from ima_dist.rundir.curves import noise_key


def main(argv: list[str]) -> int:
    """Returns an exit status. Raises ConfigError."""
    parser = OneLineParser(
        prog="python -m ima_dist.sweep best",
        description="Choose among the finished runs in a directory.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="a directory that contains runs, of a sweep or others")
    parser.add_argument("--min-clean", type=float, required=True, metavar="A", help="lowest clean accuracy, 0 to 1")
    parser.add_argument("--noise", metavar="A,B,…", help="noise levels to average (default: area under the curve)")
    parser.add_argument(
        "--attack", metavar="|".join(ATTACKS), help="default: the strictest attack that all runs were evaluated with"
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.min_clean <= 1:
        raise ConfigError(f"--min-clean must lie between 0 and 1, not {arguments.min_clean}.")
    attack = arguments.attack
    if attack is not None and attack not in ATTACKS:
        raise ConfigError(
            f"--attack must be one of {', '.join(ATTACKS)}, not {attack!r}{did_you_mean(attack, ATTACKS)}."
        )
    levels = _levels(arguments.noise)
    directory = existing(arguments.directory)
    rows, problems = rows_of_directory(directory)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if not rows:
        raise ConfigError(f"{directory} contains no finished run: check the path.")
    say(best_text(rows, arguments.min_clean, levels, attack))
    return EXIT_DONE


def _levels(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(sorted({noise_key(float(part)) for part in (text or "").split(",") if part.strip()}))
    except ValueError:
        raise ConfigError(f"--noise must be numbers such as 0.1,0.2, not {text!r}.") from None

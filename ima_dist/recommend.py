"""``python -m ima_dist.recommend RUN_DIR``: noise levels for plain adversarial training, read from margins.

Plain adversarial training is cheap, and good if its ε suits the data. The margins that ima has estimated show where
to look (paper, section 3.3 and Fig. 14).
"""

from __future__ import annotations

import sys

from ima_dist.cli.entry import EXIT_DONE, guarded, say
from ima_dist.cli.parser import OneLineParser
from ima_dist.cli.paths import existing
from ima_dist.config.errors import ConfigError
from ima_dist.results.recommendation import adversarial_command, recommend
from ima_dist.rundir.directory import RunDir

_FEW = 100
_MANY_AT_MAX = 0.5


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.recommend", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN_DIR", help="a run of ima_dist.train with --method ima or mma")
    run = RunDir.open(existing(parser.parse_args(argv).run))
    config = run.config()
    newest = run.newest_margins()
    if newest is None:
        raise ConfigError(f"{run.path} has no margins: give a run of --method ima or mma with a finished epoch.")
    epoch, table = newest
    found = recommend(table["margin"].to_numpy(), config.eps_max)
    say(
        f"Margins of {found.samples} training samples after epoch {epoch} of {config.epochs}: half of the positive "
        f"ones lie between {found.levels[0]:g} and {found.levels[2]:g}."
    )
    say(f"{found.share_zero:.1%} are 0 (misclassified without noise), {found.share_at_max:.1%} are at the maximum.")
    if epoch < config.epochs:
        say("The run has not finished, so its margins may still grow.")
    if found.samples < _FEW:
        say("This is only a rough estimate: there are few samples.")
    if found.share_at_max > _MANY_AT_MAX:
        say(f"Most are at the maximum: a run with --eps-max above {config.eps_max:g} may show larger margins.")
    say("Plain adversarial training to compare by validation and robust accuracy:")
    for level in dict.fromkeys(found.levels):
        say("  " + adversarial_command(config, level))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

"""``python -m ima_dist.audit RUN_DIR``: compare stored margins with a minimal-norm attack.

Margins are estimated along the path of one attack, so they may be too large. FMN looks from several starts for the
nearest point beyond the boundary; where it finds one inside a margin, that margin was over-estimated.
"""

import sys

from ima_dist.cli.entry import existing, guarded, leave, say, shown
from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.cli.running import add_local, check_inputs, check_local, run_task
from ima_dist.cli.show_config import add_show_config, config_text
from ima_dist.config.errors import EXIT_DONE, ConfigError
from ima_dist.config.schema import Config
from ima_dist.config.values import with_options
from ima_dist.figures.png import margin_audit
from ima_dist.results.margin_audit import audit_text, summarise
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv, resumable=True)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.audit", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN_DIR", help="a run of ima_dist.train with --method ima or mma")
    parser.add_argument("--samples", type=int, default=500, metavar="INT", help="number of training samples to check")
    add_local(parser)
    add_options(parser, "workers", "device", "allow", "data.dir", "data.download")
    add_show_config(parser)
    arguments = parser.parse_args(argv)
    options = user_options(arguments)
    check_local(arguments, options)
    if arguments.samples < 1:
        raise ConfigError(f"--samples must be at least 1, not {arguments.samples}.")
    run = RunDir.open(existing(arguments.run))
    config = with_options(run.config(), options)
    if arguments.show_config:
        say(config_text(config, options))
        return EXIT_DONE
    newest = run.over_margins(lambda epoch, samples, pieces: epoch)
    if newest is None:
        raise ConfigError(f"{run.path} has no margins: give a run of --method ima or mma with a finished epoch.")
    with run.writing():
        check_inputs(config, run, [newest])
        status = run_task("audit", config, run, {"samples": arguments.samples}, local=arguments.local)
    if status == EXIT_DONE:
        _show(run, config, newest, arguments.samples)
    return status


def _show(run: RunDir, config: Config, epoch: int, samples: int) -> None:
    from ima_dist.evaluation.margin_audit import weaker_path

    # An audit of all training samples, fewer than were asked for, is the strongest.
    weaker = weaker_path(run, epoch, samples)
    path = weaker if weaker.exists() else run.audit_path
    table = read_parquet(path)
    if not any(table["correct"].to_pylist()):
        raise ConfigError("None of the samples is classified correctly, so there is no margin to check.")
    say(audit_text(summarise(table, config.eps_max), epoch))
    if path == weaker:
        say(f"Results: {shown(path)}. Figures show the audit of more samples in {shown(run.audit_path)}.")
        return
    figure = run.figures_dir / "audit.png"
    margin_audit(figure, table, config.norm)
    say(f"Results: {shown(path)}, {shown(figure)}")


if __name__ == "__main__":
    leave(main())

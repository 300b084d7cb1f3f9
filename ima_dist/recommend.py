"""``python -m ima_dist.recommend RUN_DIR [--run]``: noise levels for plain adversarial training, read from margins.

Plain adversarial training is cheap, and good if its ε suits the data. The margins that ima has estimated show where
to look (paper, section 3.3 and Fig. 14). With --run the networks are trained, evaluated and compared with RUN_DIR and
the runs named by --beside.
"""

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ima_dist.cli.entry import absolute_output, existing, guarded, results_root, say
from ima_dist.cli.parser import OneLineParser
from ima_dist.cli.running import run_commands
from ima_dist.config.errors import EXIT_DONE, ConfigError
from ima_dist.config.presets import data_name, options_of
from ima_dist.config.schema import Config
from ima_dist.config.values import as_flags, with_options
from ima_dist.plans.jobfile import run_path
from ima_dist.plans.sweepfile import canonical
from ima_dist.results import paper
from ima_dist.results.comparison import comparison_table
from ima_dist.results.rivals import beside_the_best
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run

_FEW = 100
_MANY_AT_MAX = 0.5
_MANY_WRONG = 0.5


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv, resumable=True)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.recommend", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN_DIR", help="a run of ima_dist.train with --method ima or mma")
    parser.add_argument("--run", action="store_true", dest="train", help="also train and evaluate them, and compare")
    parser.add_argument("--beside", metavar="DIR", nargs="+", default=[], help="further runs to compare with (--run)")
    parser.add_argument("--out", metavar="DIR", help="directory for the runs of --run (default: runs/jobs)")
    arguments = parser.parse_args(argv)
    if not arguments.train and (arguments.beside or arguments.out):
        raise ConfigError("--beside and --out go with --run.")
    run = RunDir.open(existing(arguments.run))
    beside = [RunDir.open(existing(path)) for path in arguments.beside]
    config = run.config()
    newest = run.newest_margins()
    if newest is None:
        raise ConfigError(f"{run.path} has no margins: give a run of --method ima or mma with a finished epoch.")
    epoch, table = newest
    largest = config.eps_max if config.margins_bounded else None
    found = recommend(table["margin"].to_numpy(), table["correct"].to_numpy(zero_copy_only=False), largest)
    say(
        f"Margins of {found.samples} training samples after epoch {epoch} of {config.epochs}: half of those of "
        f"correctly classified samples lie between {found.levels[0]:g} and {found.levels[2]:g}."
    )
    say(
        f"{found.share_wrong:.1%} of the samples are misclassified without noise, so their margins do not count"
        + ("." if found.share_at_max is None else f"; {found.share_at_max:.1%} of the others are at the maximum.")
    )
    if found.share_wrong > _MANY_WRONG:
        say("That is most of them: train the run further before you rely on the levels below.")
    if epoch < config.epochs:
        say("The run has not finished, so its margins may still grow.")
    if found.samples < _FEW:
        say("This is only a rough estimate: there are few samples.")
    if found.share_at_max is not None and found.share_at_max > _MANY_AT_MAX:
        say(f"Most are at the maximum: a run with --eps-max above {config.eps_max:g} may show larger margins.")
    say("Plain adversarial training to compare by validation and robust accuracy:")
    levels = tuple(dict.fromkeys(found.levels))
    for level in levels:
        say("  " + adversarial_command(config, level))
    if not arguments.train:
        return EXIT_DONE
    root = absolute_output(arguments.out) if arguments.out else results_root() / "jobs"
    return _compared(run, beside, [adversarial_config(config, level) for level in levels], root)


def _compared(run: RunDir, beside: list[RunDir], configs: list[Config], root: Path) -> int:
    """Train and evaluate ``configs``, then print their accuracies beside those of the other runs."""
    for other in (run, *beside):
        if other.status != "finished":
            raise ConfigError(f"{other.path} has not finished, so nothing can be compared with it: resume it first.")
        if (data_name(other.config()), other.config().norm) != (data_name(run.config()), run.config().norm):
            raise ConfigError(f"{other.path} is a run on other data or under another norm: leave it out.")
    trained = {}
    for config in configs:
        name = f"adv{config.eps_max:g}"
        say(f"\n[{name}]")
        status = run_commands(config, run_path(root, config), (config.epochs,))
        if status != EXIT_DONE:
            return status
        trained[name] = Run(RunDir(run_path(root, config)), name)
    others: dict[str, Run] = {}
    for other in (run, *beside):
        method = other.config().method  # the paper's name of the row
        names = (method, f"{method} ({other.path.name})", f"{method} ({other.path})")
        others[next(name for name in names if name not in others or name == names[-1])] = Run(other)
    table = min(paper.rows_of(run.config()), default=None)
    say("\n" + comparison_table({**others, **trained}, table))
    for sentence in beside_the_best({**others, **trained}, trained):
        say(sentence)
    say("These are single networks: another seed gives other ones.")
    return EXIT_DONE


class Recommendation(NamedTuple):
    """Noise levels to try, ascending, in the run's norm and the units of the data, and the margins they come from.

    samples: number of margins. share_wrong: share of them whose sample is misclassified without noise. share_at_max:
    share of the other margins that are eps_max or more; None if there is no largest margin.
    """

    levels: tuple[float, float, float]
    samples: int
    share_wrong: float
    share_at_max: float | None


def recommend(margins: np.ndarray, correct: np.ndarray, eps_max: float | None) -> Recommendation:
    """The ends and the median of the shortest interval that holds half of the margins of correct samples.

    This is the peak in the paper's Fig. 14. A misclassified sample has no distance to the boundary: ima sets its
    margin to the margin expansion, or leaves it as it was (``margin_rule``), and mma sets it to 0. A margin of 0 is
    none to train with. ``margins``: (N,). ``correct``: (N,) bool, classified correctly without noise. Raises
    ConfigError if fewer than two are left.
    """
    own = np.sort(margins[correct & (margins > 0)])
    if len(own) < 2:
        raise ConfigError(
            "Fewer than two training samples are classified correctly and have a margin above 0: train the run further."
        )
    half = len(own) // 2
    start = int(np.argmin(own[half:] - own[: len(own) - half]))
    inside = own[start : start + half + 1]
    low, middle, high = (float(f"{v:.2g}") for v in (inside[0], np.median(inside), inside[-1]))
    at_max = None if eps_max is None else float((own >= eps_max * (1 - 1e-6)).mean())
    return Recommendation((low, middle, high), len(margins), float(1 - correct.mean()), at_max)


def adversarial_config(config: Config, eps: float) -> Config:
    """adv with ``eps``, trained and evaluated as ``config`` was: data, network, protocol."""
    # The margin expansion is not adv's, and may be larger than its noise level.
    return canonical(with_options(config, {"method": "adv", "eps_max": float(f"{eps:g}"), "delta_eps": None}))


def adversarial_command(config: Config, eps: float) -> str:
    """The command that trains ``adversarial_config``."""
    config = adversarial_config(config, eps)
    options = options_of(config)
    first = {name: options.pop(name, getattr(config, name)) for name in ("method", "norm", "eps_max")}
    return shlex.join(["python", "-m", "ima_dist.train", config.preset, *as_flags({**first, **options})])


if __name__ == "__main__":
    sys.exit(main())

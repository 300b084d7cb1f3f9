"""``ima-dist COMMAND``: every command under one name; ``python -m`` starts the same modules."""

import importlib
import sys
from typing import NoReturn

from ima_dist import __version__
from ima_dist.cli.entry import guarded, leave, say
from ima_dist.cli.parser import PROGRAM
from ima_dist.config.errors import EXIT_DONE, ConfigError, did_you_mean

# command -> module, which is imported only when it is used, and one line of help.
COMMANDS = {
    "train": ("ima_dist.train", "train a network, evaluate it, and show the result"),
    "evaluate": (
        "ima_dist.evaluate",
        "attack the network of a finished run, or one trained elsewhere",
    ),
    "audit": ("ima_dist.audit", "compare a run's margins with an independent attack"),
    "recommend": ("ima_dist.recommend", "suggest noise levels for adversarial training from a run's margins"),
    "export": ("ima_dist.export", "write a run's network, with a card, for others to use"),
    "predict": ("ima_dist.predict", "classify the images of a folder with a run or an export"),
    "job": ("ima_dist.job", "train and evaluate every row of one of the paper's tables"),
    "sweep": ("ima_dist.sweep", "train and evaluate every combination of a sweep file; best: choose among them"),
    "report": ("ima_dist.report.__main__", "write finished runs, beside the paper, as an HTML page and CSV files"),
    "dashboard": ("ima_dist.dashboard.__main__", "browse the runs of a directory"),
    "dataset": ("ima_dist.dataset", "bring the Parquet tables of a results directory up to date"),
    "data": ("ima_dist.data.__main__", "prepare: make a memory-mapped copy of a data set; verify: check one"),
    "submit": ("cluster.submit", "submit a job or sweep file to SLURM"),
    "status": ("cluster.status", "show, follow, cancel or requeue submitted jobs"),
    "doctor": ("cluster.doctor", "check whether a machine or a partition is fit for a job"),
    "local": ("cluster.local", "start or stop a SLURM on this machine, to try things out"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command, as for ``ima_dist.train``."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[words[0]][0])
        return int(module.main(words[1:]))
    return guarded(_main, words)


def _main(argv: list[str]) -> int:
    word = argv[0] if argv else "--help"
    if word == "--version":
        say(f"{PROGRAM} {__version__}")
    elif word in ("-h", "--help"):
        lines = [f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
        say("\n".join([f"usage: {PROGRAM} COMMAND …\n", *lines, f"\n{PROGRAM} COMMAND --help explains a command."]))
    else:
        raise ConfigError(f"Unknown command {word!r}{did_you_mean(word, COMMANDS)}. See {PROGRAM} --help.")
    return EXIT_DONE


def run() -> NoReturn:
    """The console script."""
    leave(main())


if __name__ == "__main__":
    run()

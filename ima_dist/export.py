"""``python -m ima_dist.export RUN_DIR --to DIR``: write a run's network, with a card, for others to use."""

import sys

from ima_dist.cli.entry import absolute_output, existing, guarded, say, shown
from ima_dist.cli.parser import OneLineParser, add_options, user_options
from ima_dist.cli.running import see_users_modules
from ima_dist.config.errors import EXIT_DONE, ConfigError, complain, did_you_mean
from ima_dist.config.values import with_options
from ima_dist.results.tradeoff import RULES, chosen_epoch
from ima_dist.rundir.run import Run

_FORMATS = "safetensors,onnx,torch"


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN_DIR", help="a run of ima_dist.train")
    parser.add_argument("--to", required=True, metavar="DIR", help="a directory that does not exist yet")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--epoch", type=int, metavar="N", help="the weights after N epochs (default: the last)")
    which.add_argument("--select", metavar="RULE", help=f"{RULES}: the epoch that this rule selects")
    formats = f"what to write beside card and weights, which are always written (default: {_FORMATS})"
    parser.add_argument("--format", default=_FORMATS, metavar="A,B,…", help=formats)
    add_options(parser, "data.dir", "data.download")
    arguments = parser.parse_args(argv)
    chosen = _formats(arguments.format)
    run = Run.open(existing(arguments.run))
    to = absolute_output(arguments.to)
    epoch = chosen_epoch(run, arguments.epoch, arguments.select)
    if arguments.select:
        complain(f"{arguments.select}: epoch {epoch}.")

    from ima_dist.classifier import programs
    from ima_dist.classifier.export import check_place, write_export
    from ima_dist.cli.same_network import check_network
    from ima_dist.data.load import load
    from ima_dist.training.checkpoint import load_weights
    from ima_dist.training.network import make_network

    check_place(to)
    if "onnx" in chosen:
        programs.need_onnx()
    see_users_modules()
    config = with_options(run.config, user_options(arguments))
    data = load(config.data, config.seed)
    network = make_network(config, data, trained=True)
    check_network(run.dir, config, data, network, [epoch])
    load_weights(run.dir, epoch, data.digest(), network)
    card = write_export(run, epoch, network, data, chosen, to)
    for warning in card["warnings"]:
        complain(f"warning: {warning}")
    for name, found in card["checks"].items():
        say(
            f"{name}: compared on {found['samples']} test samples, clean and attacked; logits differ by at most "
            f"{found['difference']:.1e} of the largest."
        )
    say(f"Exported the weights after epoch {epoch}: {shown(to)}")
    return EXIT_DONE


def _formats(text: str) -> tuple[str, ...]:
    known = tuple(_FORMATS.split(","))
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in found:
        if name not in known:
            raise ConfigError(f"--format must be of {', '.join(known)}, not {name!r}{did_you_mean(name, known)}.")
    if not found:
        raise ConfigError(f"--format must name at least one of {', '.join(known)}.")
    return found


if __name__ == "__main__":
    sys.exit(main())

"""``python -m ima_dist.evaluate RUN_DIR``: attack the network of a finished run again, with other settings."""

from __future__ import annotations

import sys
from pathlib import Path

from ima_dist import config as configuration
from ima_dist import launcher
from ima_dist.config import ATTACKS, Config, ConfigError
from ima_dist.results.rundir import RunDir, write_json
from ima_dist.train import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, check_inputs, existing, guarded, say, show_results

_ALLOWED = ("eval.", "workers", "device", "data.dir", "data.download")


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = configuration.OneLineParser(prog="python -m ima_dist.evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN_DIR", help="a run of ima_dist.train that has finished training")
    parser.add_argument("--attack", metavar="|".join(ATTACKS), help="this attack only (as --eval.attacks)")
    for part in _ALLOWED:
        configuration.add_options(parser, only=part)
    arguments = parser.parse_args(argv)
    options = configuration.given_options(arguments)
    if arguments.attack:
        options["eval.attacks"] = (arguments.attack,)
    if "data.dir" in options:
        options["data.dir"] = str(Path(options["data.dir"]).absolute())
    run = RunDir.open(existing(arguments.run))
    config = configuration.replace(run.config(), options)
    if not (run.checkpoints_dir / f"epoch={config.epochs:04d}").exists():
        raise ConfigError(f"{run.path} has not finished training: continue it with --resume {run.path} first.")
    with run.writing():
        check_weights(run, config.epochs, check_inputs(config))
        return _evaluate(config, run)


def check_weights(run: RunDir, epoch: int, data: str) -> None:
    """Raise ConfigError if there are no undamaged weights of ``epoch``, trained on the data with this digest."""
    from ima_dist.engine import checkpoint

    try:
        checkpoint.weights_file(run, epoch, data)
    except checkpoint.Damaged as error:
        raise ConfigError(f"{error}.") from error


def _evaluate(config: Config, run: RunDir) -> int:
    from ima_dist.progress import ProgressView

    with launcher.cluster(config) as cluster:
        write_json(run.progress_path, {"stage": "starting"})
        try:
            with ProgressView(run):
                answer = launcher.run_workers("evaluate", config, run, cluster)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_FAILED
    if answer["status"] == "interrupted":
        say("Interrupted. The same command continues.")
        return EXIT_REQUEUE
    if answer["status"] != "finished":
        print(f"error: {answer['message']}", file=sys.stderr)
        return EXIT_FAILED
    show_results(run)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())

"""What is still to be done for a run to be trained, and evaluated after certain epochs: the next command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import options_of
from ima_dist.config.schema import Config
from ima_dist.config.values import as_flags
from ima_dist.rundir.curves import attack_rows, noise_key
from ima_dist.rundir.directory import RunDir

# Options of an evaluation that is made again.
_EVALUATION = ("eval.", "workers", "cpus_per_worker", "device", "data.dir", "data.download")


def next_command(config: Config, path: Path, epochs: Sequence[int]) -> tuple[str, list[str]] | None:
    """Module and words of the command that brings the run at ``path`` further; None if nothing is left to do.

    ``epochs``: those after which it is to be evaluated as ``config.eval`` says. A run that has finished is never
    trained again. Raises ConfigError if another configuration's run lies there, or its files are damaged.
    """
    run, flags = RunDir(path), as_flags(options_of(config))
    if not run.config_path.exists():
        return "ima_dist.train", [config.preset, "--out", str(path), *flags]
    if run.config().fingerprint() != config.fingerprint():
        raise ConfigError(f"{path} holds another run: move it away.")
    if run.status != "finished":
        return "ima_dist.train", ["--resume", str(path), *flags]
    missing = [epoch for epoch in epochs if not _evaluated(run, config, epoch)]
    if not missing:
        return None
    own = {name: value for name, value in options_of(config).items() if name.startswith(_EVALUATION)}
    # Said in any case: the run itself may have been evaluated otherwise.
    own |= {"eval.attacks": config.eval.attacks, "eval.noise": config.eval.noise}
    return "ima_dist.evaluate", [str(path), "--epochs", ",".join(map(str, missing)), *as_flags(own)]


def _evaluated(run: RunDir, config: Config, epoch: int) -> bool:
    most = config.eval.samples or sys.maxsize
    rows = attack_rows([point for point in run.points() if point.samples <= most], epoch)
    levels = {noise_key(x) for x in config.eval.noise}
    return all(levels <= set(rows.get(attack, ())) for attack in config.eval.attacks)

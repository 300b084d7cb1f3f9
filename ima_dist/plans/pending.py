"""The next command that a run still needs: to be trained, and evaluated as was asked."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ima_dist.config.attacks import SMOOTHING, protocol
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import options_of
from ima_dist.config.schema import Config
from ima_dist.config.smoothing import sigma_of
from ima_dist.config.values import as_flags, with_options
from ima_dist.rundir.curves import Point, noise_key
from ima_dist.rundir.directory import RunDir

# What defines the result of an evaluation, besides the number of samples.
_DEFINING = ("noise", "steps", "step_scale", "spsa_samples", "order")
# How an evaluation runs, as opposed to what it measures.
_WHERE = ("workers", "cpus_per_worker", "device", "allow", "data.dir", "data.download")


def next_command(
    config: Config, path: Path, epochs: Sequence[int], then: Iterable[dict[str, Any]] = ()
) -> tuple[str, list[str]] | None:
    """Module and arguments of the next command that the run at ``path`` needs; None if it needs none.

    ``epochs``: the epochs whose network is evaluated as ``config.eval`` says. ``then``: options of further
    evaluations of the last epoch; of two with the same attack only the later one is asked for. A finished run is never
    trained again. Raises ConfigError if the run of another configuration is there, or its files are damaged.
    """
    run = RunDir(path)
    if not run.config_path.exists():
        return "ima_dist.train", [config.preset, "--out", str(path), *as_flags(options_of(config))]
    stored = run.config()
    if stored.fingerprint() != config.fingerprint():
        raise ConfigError(f"{path} holds the run of another configuration: move it away.")
    if "order" not in stored.eval.model_fields_set:
        # A run from before the option was attacked on the first samples; that counts, and is continued.
        config = with_options(config, {"eval.order": "first"})
    flags = as_flags(options_of(config))
    if run.status != "finished":
        return "ima_dist.train", ["--resume", str(path), *flags]
    wanted = {(epoch, attack): config for epoch in epochs for attack in config.eval.attacks}
    for options in then:
        other = with_options(config, options)
        wanted |= {(other.epochs, attack): other for attack in other.eval.attacks}
    summary, points = run.summary(), run.points()
    missing = {key: settings for key, settings in wanted.items() if not _evaluated(points, summary, settings, *key)}
    if not missing:
        return None
    settings = next(iter(missing.values()))
    together = [key for key, its_settings in missing.items() if its_settings == settings]
    return "ima_dist.evaluate", [
        str(path),
        *("--epochs", ",".join(map(str, sorted({epoch for epoch, _ in together})))),
        *as_flags(_options(summary, settings, tuple(dict.fromkeys(attack for _, attack in together)))),
    ]


def _evaluated(points: list[Point], summary: dict[str, Any], config: Config, epoch: int, attack: str) -> bool:
    """Whether the network of ``epoch`` was attacked on all noise levels and samples, with the same settings."""
    if attack == SMOOTHING:
        return _certified(summary, config, epoch)
    measured = [point for point in points if point.accuracy is not None]
    asked = {"attack": attack, "epoch": epoch, "loss": "both", "split": "test", **protocol(attack, config)}
    # Runs of earlier versions do not state the size of the test set: it is that of their largest evaluation.
    available = summary.get("test_samples") or max((point.samples for point in measured), default=0)
    asked["samples"] = min(config.eval.samples or math.inf, available)
    asked["order"] = config.eval.order if asked["samples"] < available else "first"
    done = {p.level for p in measured if all(getattr(p, name) in (None, value) for name, value in asked.items())}
    return {noise_key(level) for level in config.eval.noise} <= done


def _certified(summary: dict[str, Any], config: Config, epoch: int) -> bool:
    """Whether the smoothed classifier of ``epoch`` was certified on all samples, with the same settings."""
    asked: dict[str, Any] = {
        "epoch": epoch,
        "sigma": sigma_of(config),
        "draws": config.smoothing.draws,
        "alpha": config.smoothing.alpha,
    }
    available = summary.get("test_samples") or 0
    samples = min(config.eval.samples or math.inf, available)
    asked |= {"samples": samples, "order": config.eval.order if samples < available else "first"}
    return any(
        isinstance(entry, dict) and all(entry.get(name) == value for name, value in asked.items())
        for entry in summary.get("certificates") or []
    )


def _options(summary: dict[str, Any], config: Config, attacks: tuple[str, ...]) -> dict[str, Any]:
    """Options of ``ima_dist.evaluate``; those that define the result are all given, since the run may have others."""
    options = {name: value for name, value in options_of(config).items() if name in _WHERE}
    options["eval.attacks"] = attacks
    options |= {f"eval.{name}": getattr(config.eval, name) for name in _DEFINING}
    if SMOOTHING in attacks:
        options |= {f"smoothing.{name}": getattr(config.smoothing, name) for name in ("draws", "alpha")}
        options["smoothing.sigma"] = sigma_of(config)
    # No number of samples means all of them, but on the command line it would mean the run's own number.
    options["eval.samples"] = config.eval.samples or summary.get("test_samples")
    return options

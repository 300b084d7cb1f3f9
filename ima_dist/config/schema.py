"""What a run is: nested, checked dataclasses, and their form on the command line and in config.yaml.

Every field carries its help text; ``parse_options`` and ``to_dict``/``from_dict`` are derived from the
fields, so an option is added in one place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from ima_dist.config.attacks import ATTACK_TABLE, ATTACKS
from ima_dist.config.errors import ConfigError, did_you_mean

METHODS = ("ima", "ce", "adv", "rand", "trades", "mma", "ddn")
NORMS = ("linf", "l2")


def _opt(default: Any, help: str, choices: tuple[str, ...] = (), alters_result: bool = True) -> Any:
    metadata = {"help": help, "choices": choices, "alters_result": alters_result}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: str = _opt(dataclasses.MISSING, "function that loads the data, as pkg.module:function")
    dir: str | None = _opt(None, "directory that holds the data files, or a prepared copy of them", alters_result=False)
    download: bool = _opt(False, "fetch missing files and check their checksums", alters_result=False)
    subset: int | None = _opt(None, "train on this many samples, as many of each class; test set in proportion")
    noise: float = _opt(0.06, "moons: standard deviation of the noise added to the points")

    def check(self) -> None:
        _check_reference("data.source", self.source)
        if self.subset is not None and self.subset < 1:
            raise ConfigError(f"--data.subset must be at least 1, not {self.subset}.")
        if not self.noise >= 0 or math.isinf(self.noise):
            raise ConfigError(f"--data.noise must be a number of at least 0, not {self.noise}.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    factory: str = _opt(dataclasses.MISSING, "function that builds the network, as pkg.module:function")
    sync_batch_norm: bool = _opt(
        False, "batch norm over the global batch instead of each worker's share (GPUs only; slower)"
    )

    def check(self) -> None:
        _check_reference("model.factory", self.factory)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: str = _opt("adam", "optimiser", choices=("adam", "adamw", "adamax", "sgd"))
    lr: float = _opt(1e-3, "learning rate")
    weight_decay: float = _opt(0.0, "weight decay")
    momentum: float = _opt(0.0, "momentum (sgd)")
    halve_every: int | None = _opt(None, "halve the learning rate after this many epochs")

    def check(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"--optimizer.lr must be above 0, not {self.lr}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"--optimizer.weight-decay must be at least 0, not {self.weight_decay}.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"--optimizer.momentum must lie in [0, 1), not {self.momentum}.")
        if self.halve_every is not None and self.halve_every < 1:
            raise ConfigError(f"--optimizer.halve-every must be at least 1, not {self.halve_every}.")


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Settings of the attack inside training (Algorithm 3; paper, section 3)."""

    steps: int = _opt(20, "PGD steps in training (N_PGD)")
    bisections: int = _opt(10, "halvings of the bracket around the boundary (N_binary)")
    step_scale: float = _opt(4.0, "how often the steps may sweep the ball (alpha)")
    boundary_side: str = _opt(
        "midpoint", "which point of the last bracket is used", choices=("midpoint", "inside", "outside")
    )

    def check(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"--attack.steps must be at least 1, not {self.steps}.")
        if self.bisections < 0:
            raise ConfigError(f"--attack.bisections must be at least 0, not {self.bisections}.")
        if not 0 < self.step_scale < math.inf:
            raise ConfigError(f"--attack.step-scale must be above 0, not {self.step_scale}.")


@dataclass(frozen=True, kw_only=True)
class TradesConfig:
    inverse_lambda: float = _opt(6.0, "trades: weight of the divergence against the clean loss (1/lambda)")

    def check(self) -> None:
        if not 0 < self.inverse_lambda < math.inf:
            raise ConfigError(f"--trades.inverse-lambda must be above 0, not {self.inverse_lambda}.")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    attacks: tuple[str, ...] = _opt(
        ("pgd100", "worst"),
        "attacks to evaluate with: " + "; ".join(f"{a.name}, {a.about}" for a in ATTACK_TABLE.values()),
        choices=ATTACKS,
        alters_result=False,
    )
    noise: tuple[float, ...] = _opt((), "noise levels (default: those of the paper's tables)", alters_result=False)
    steps: int = _opt(100, "PGD steps of the attacks, iterations of spsa", alters_result=False)
    step_scale: float = _opt(4.0, "alpha of pgd100 and worst", alters_result=False)
    spsa_samples: int = _opt(2018, "random directions in an iteration of spsa", alters_result=False)
    samples: int | None = _opt(None, "attack at most this many test samples", alters_result=False)
    val_noise: float | None = _opt(
        None,
        "also attack validation samples after every epoch, at this noise level (a cheap worst, for sweeps)",
        alters_result=False,
    )
    val_steps: int = _opt(10, "PGD steps of that attack", alters_result=False)
    val_samples: int = _opt(500, "validation samples of that attack, the first ones", alters_result=False)

    def check(self) -> None:
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            raise ConfigError("--eval.attacks needs at least one attack, and each once.")
        if not self.noise:
            raise ConfigError("--eval.noise needs at least one level, for example --eval.noise 0,0.1,0.2.")
        for level in self.noise:
            if not 0 <= level < math.inf:
                raise ConfigError(f"--eval.noise must be numbers of at least 0, not {level}.")
        if tuple(sorted(set(self.noise))) != self.noise:
            raise ConfigError("--eval.noise must be given in ascending order, each level once.")
        if self.steps < 1:
            raise ConfigError(f"--eval.steps must be at least 1, not {self.steps}.")
        if not 0 < self.step_scale < math.inf:
            raise ConfigError(f"--eval.step-scale must be above 0, not {self.step_scale}.")
        if self.spsa_samples < 1:
            raise ConfigError(f"--eval.spsa-samples must be at least 1, not {self.spsa_samples}.")
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"--eval.samples must be at least 1, not {self.samples}.")
        if self.val_noise is not None and not 0 < self.val_noise < math.inf:
            raise ConfigError(f"--eval.val-noise must be above 0, not {self.val_noise}.")
        if self.val_steps < 1:
            raise ConfigError(f"--eval.val-steps must be at least 1, not {self.val_steps}.")
        if self.val_samples < 1:
            raise ConfigError(f"--eval.val-samples must be at least 1, not {self.val_samples}.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. Built by ``presets.make_config``; immutable, so that what is saved is what ran."""

    preset: str = _opt(dataclasses.MISSING, "")
    method: str = _opt("ima", "training method", choices=METHODS)
    norm: str = _opt("linf", "norm of the perturbation", choices=NORMS)
    eps_max: float = _opt(
        dataclasses.MISSING, "noise level in training, the largest one for ima (epsilon_max), mma (d_max) and ddn"
    )
    delta_eps: float | None = _opt(
        None, "margin expansion step of ima, smallest radius of mma (default: eps-max / epochs)"
    )
    beta: float = _opt(0.5, "ima: weight of the noisy samples in the loss, 0 to 1")
    margin_update: str = _opt(
        "epoch",
        "ima: margins from a pass after each epoch (the paper) or from the training step",
        choices=("epoch", "online"),
    )
    epochs: int = _opt(dataclasses.MISSING, "number of epochs")
    batch_size: int = _opt(128, "size of a global batch, shared by all workers")
    workers: int | str | None = _opt(
        None,
        "number of workers, or a range such as 1-4 of which as many run as the cluster has room for "
        "(default: one for each GPU, or one on the CPU)",
        alters_result=False,
    )
    cpus_per_worker: int | None = _opt(
        None, "CPUs of each worker (default: as many as can be had)", alters_result=False
    )
    hang_after: float = _opt(
        600.0, "seconds without a pass through the network after which a worker writes its stack", alters_result=False
    )
    checkpoint_every: int | None = _opt(
        None,
        "also write a checkpoint every so many steps, for long epochs (default: after epochs)",
        alters_result=False,
    )
    seed: int = _opt(0, "seed of initial weights, order, noise and split")
    device: str = _opt("auto", "where to compute", choices=("auto", "cpu", "cuda"), alters_result=False)
    dtype: str = _opt("float32", "precision", choices=("float32", "float64"))
    autocast: str = _opt(
        "none",
        "half precision for the network's passes in training: float16, or bfloat16 on cards that have it; never in "
        "evaluation",
        choices=("none", "float16", "bfloat16"),
    )
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    trades: TradesConfig = field(default_factory=TradesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def expansion(self) -> float:
        """Δε of Algorithm 2: what an uncrossed margin grows by in an epoch."""
        return self.eps_max / self.epochs if self.delta_eps is None else self.delta_eps

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Fewest and most workers of ``--workers MIN-MAX``; None if their number is fixed, or left to the launcher."""
        if not isinstance(self.workers, str):
            return None
        found = re.fullmatch(r"(\d+)-(\d+)", self.workers)
        least, most = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= least <= most:
            raise ConfigError(f"--workers must be a whole number, or a range such as 1-4, not {self.workers!r}.")
        return least, most

    def check(self) -> Config:
        """Return self, or raise ConfigError naming the option, the reason and what is accepted."""
        _check_choices(self)
        if not 0 < self.eps_max < math.inf:
            raise ConfigError(f"--eps-max must be above 0, not {self.eps_max}.")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"--beta must lie between 0 and 1, not {self.beta}.")
        if self.epochs < 1:
            raise ConfigError(f"--epochs must be at least 1, not {self.epochs}.")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, not {self.batch_size}.")
        if self.worker_range is None and isinstance(self.workers, int) and self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, not {self.workers}.")
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise ConfigError(f"--cpus-per-worker must be at least 1, not {self.cpus_per_worker}.")
        if not 0 < self.hang_after < math.inf:
            raise ConfigError(f"--hang-after must be above 0, not {self.hang_after}.")
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ConfigError(f"--checkpoint-every must be at least 1, not {self.checkpoint_every}.")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"--seed must be from 0 to {2**31 - 1}, not {self.seed}.")
        if not 0 < self.expansion <= self.eps_max:
            raise ConfigError(
                f"--delta-eps must be above 0 and at most --eps-max ({self.eps_max}), not {self.delta_eps}."
            )
        if self.autocast != "none" and self.dtype != "float32":
            raise ConfigError(f"--autocast {self.autocast} goes with --dtype float32, not {self.dtype}.")
        if self.method == "ddn" and self.norm != "l2":
            raise ConfigError("--method ddn exists for the L2 norm alone: add --norm l2, or choose another method.")
        for part in (self.data, self.model, self.optimizer, self.attack, self.trades, self.eval):
            part.check()
        return self

    def fingerprint(self) -> str:
        """Hash of all that determines weights and margins; equal on any number of workers or devices."""
        text = json.dumps(result_fields(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def result_fields(config: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out[f.name] = result_fields(value)
        elif f.metadata["alters_result"]:
            out[f.name] = list(value) if isinstance(value, tuple) else value
    if isinstance(config, Config):
        out["delta_eps"] = config.expansion
        if config.autocast == "none":
            # Runs from before there was the option keep their fingerprints.
            del out["autocast"]
    return out


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out.update(flatten(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def _check_choices(config: Any, prefix: str = "") -> None:
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        name = prefix + f.name
        if dataclasses.is_dataclass(value):
            _check_choices(value, f"{name}.")
            continue
        choices = f.metadata["choices"]
        for item in value if isinstance(value, tuple) else (value,):
            if choices and item not in choices:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{flag} must be one of {', '.join(choices)}, not {item!r}{did_you_mean(item, choices)}."
                )


def _check_reference(name: str, value: str) -> None:
    module, _, function = value.partition(":")
    if not module or not function.isidentifier():
        raise ConfigError(f"--{name} must have the form pkg.module:function, not {value!r}.")

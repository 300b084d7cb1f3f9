"""The options of a run: one field each, with its help text and what it accepts.

The command line and config.yaml are derived from the fields, so an option is added in one place. Only its default,
once released, must stay as it is: older runs have not saved it, and are taken to have used that.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from annotated_types import Ge
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator, Strict, model_validator

from ima_dist.config.attacks import ABOUT, EVALUATIONS
from ima_dist.config.checked import Checked
from ima_dist.config.class_weights import weights_text
from ima_dist.config.errors import ConfigError
from ima_dist.config.forms import is_name, is_worker_count, whole_range
from ima_dist.config.method_options import AttackConfig, FatConfig, IaatConfig, NfgsmConfig, TradesConfig
from ima_dist.config.numbers import level
from ima_dist.config.schedule import Schedule, schedule_text
from ima_dist.config.sections import Aside as _Aside
from ima_dist.config.sections import DataConfig as DataConfig
from ima_dist.config.sections import ModelConfig as ModelConfig
from ima_dist.config.smoothing import RandConfig, SmoothingConfig, check_smoothing

Method = Literal["ima", "ce", "adv", "rand", "trades", "mma", "ddn", "iaat", "fat", "nfgsm", "external"]
Norm = Literal["linf", "l2"]
Allowed = Literal["random", "coupled", "not-finite"]
#: A network that was trained elsewhere and is only evaluated here; its configuration says that it has one epoch.
EXTERNAL = "external"
#: The methods that train.
METHODS: tuple[str, ...] = tuple(name for name in get_args(Method) if name != EXTERNAL)
NORMS: tuple[str, ...] = get_args(Norm)
#: Method -> the only norm that it exists for.
ONLY_NORM = {"ddn": "l2", "nfgsm": "linf"}
#: iaat's γ, by which an ε is tried up and down, in units of its first ε (Balaji et al. 2019: 1.9/255 of 8/255).
_IAAT_GAMMA = 1.9 / 8
if TYPE_CHECKING:
    AttackName = str
else:
    AttackName = Literal[EVALUATIONS]

Level = Annotated[float, BeforeValidator(level)]


class OptimizerConfig(Checked):
    name: Literal["adam", "adamw", "adamax", "sgd"] = Field("adam", description="optimiser")
    lr: float = Field(1e-3, gt=0, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum (sgd)")
    halve_every: int | None = Field(None, ge=1, description="halve the learning rate after this many epochs")
    schedule: Annotated[str, AfterValidator(schedule_text)] = Field(
        "constant",
        description="learning rate over the training: constant; steps:E1,E2,…, a tenth after each of these epochs, or "
        "shares such as steps:50%,75% (steps:50%,75%:0.5 halves it); cosine, along half a wave down to 0; one-cycle, "
        "up for 30 % of the training and then down",
    )
    warmup: float = Field(0.0, ge=0, description="epochs over which the learning rate rises linearly at the beginning")
    nesterov: bool = Field(False, description="Nesterov's momentum (sgd)")
    clip: float | None = Field(
        None, gt=0, description="largest L2 norm of the gradient of all parameters, to which a longer one is cut"
    )
    decay_norms: bool = Field(
        True, description="weight decay also for the parameters of normalisation layers (default: true)"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> OptimizerConfig:
        if self.schedule != "constant" and self.halve_every is not None:
            raise ConfigError(
                f"--optimizer.schedule {self.schedule} and --optimizer.halve-every exclude each other: give only one."
            )
        if self.schedule == "one-cycle" and self.warmup:
            raise ConfigError("--optimizer.schedule one-cycle begins with a rise: leave out --optimizer.warmup.")
        if self.nesterov and not (self.name == "sgd" and self.momentum):
            raise ConfigError(
                "--optimizer.nesterov goes with --optimizer.name sgd and --optimizer.momentum above 0, such as 0.9."
            )
        return self


class EvalConfig(Checked):
    attacks: Annotated[tuple[AttackName, ...], Strict(False)] = _Aside(
        ("pgd100", "worst"),
        description=f"attacks to evaluate with: {ABOUT}",
    )
    noise: Annotated[tuple[Annotated[Level, Ge(0)], ...], Strict(False)] = _Aside(
        (), description="noise levels, such as 0,4/255,8/255 (default: those of the paper's tables)"
    )
    steps: int = _Aside(100, ge=1, description="PGD steps of the attacks, iterations of spsa")
    step_scale: float = _Aside(4.0, gt=0, description="alpha of pgd100 and worst")
    spsa_samples: int = _Aside(2018, ge=1, description="random directions per iteration of spsa")
    samples: int | None = _Aside(None, ge=1, description="attack at most this many test samples")
    # New runs have "stratified" (presets.make_config); a config.yaml without the entry is of a run before this option.
    order: Literal["stratified", "first"] = _Aside(
        "first",
        description="which samples to take if not all: stratified, in proportion to the classes and the same in all "
        "runs on the same data (the default for new runs); or the first ones, as in the paper's Tables 9 and 12",
    )
    val_noise: Level | None = _Aside(
        None,
        gt=0,
        description="also attack validation samples after every epoch, at this noise level (a cheap worst, for sweeps)",
    )
    val_steps: int = _Aside(10, ge=1, description="PGD steps of that attack")
    val_samples: int = _Aside(500, ge=1, description="number of validation samples of that attack")


class Config(Checked):
    """One run. Built by ``presets.make_config``; immutable, so that what is saved is what ran."""

    preset: str
    name: Annotated[str, AfterValidator(is_name)] | None = Field(
        None, description="name of your data, with the preset own: results are shown and compared under it"
    )
    method: Method = Field(
        "ima", description="training method; external marks a network trained elsewhere, which is only evaluated"
    )
    norm: Norm = Field("linf", description="norm of the perturbation")
    eps_max: Level = Field(
        gt=0,
        description="noise level in training, the largest one for ima (epsilon_max), mma (d_max) and ddn, the first "
        "one for iaat",
    )
    delta_eps: Level | None = Field(
        None,
        description="margin expansion step of ima, smallest radius of mma (default: eps-max / epochs); gamma of iaat "
        "(default: 1.9/8 of eps-max)",
    )
    beta: float = Field(0.5, ge=0, le=1, description="ima: weight of the noisy samples in the loss, 0 to 1")
    margin_update: Literal["epoch", "online"] = Field(
        "epoch", description="ima: margins from a pass after each epoch (the paper) or from the training step"
    )
    margin_rule: Literal["paper", "journal", "ame"] = Field(
        "paper",
        description="ima: how margins change: paper, Algorithm 2; journal, half-way to the boundary; ame, without a "
        "largest margin; the last two take margins from the training step",
    )
    epochs: int = Field(ge=1, description="number of epochs")
    batch_size: int = Field(128, ge=1, description="size of a global batch, shared by all workers")
    workers: Annotated[int | str | None, PlainValidator(is_worker_count)] = _Aside(
        None,
        description="number of workers, or a range such as 1-4, of which as many run as the cluster has room for "
        "(default: one per GPU, or one on the CPU)",
    )
    cpus_per_worker: int | None = _Aside(None, ge=1, description="CPUs per worker (default: as many as there are)")
    hang_after: float = _Aside(
        600.0, gt=0, description="seconds without a pass through the network after which a worker writes its stack"
    )
    profile: int | None = _Aside(
        None,
        ge=1,
        description="record so many training steps with torch's profiler in RUN_DIR/profile",
    )
    checkpoint_every: int | None = _Aside(
        None, ge=1, description="also write a checkpoint every so many steps, for long epochs (default: after epochs)"
    )
    class_weights: Annotated[str, AfterValidator(weights_text)] | None = Field(
        None,
        description="weight of each class in the loss: balanced, the same for each class as a whole; or a CSV file of "
        "class,weight (default: all samples weigh the same)",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="end the training after so many epochs without a better robust accuracy of the validation samples "
        "(--eval.val-noise); the result is then the network of the best epoch (default: train all epochs)",
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of an exponential moving average of the weights, such as 0.999, which is then validated, "
        "evaluated and exported; attacks and margins in training see the weights themselves (default: none)",
    )
    awp: float = Field(
        0.0,
        ge=0,
        description="adversarial weight perturbation: each step's gradient is taken at weights moved against the loss, "
        "layer by layer by this share of their norm, such as 0.005 (default: none)",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each label that is spread evenly over all classes, in the cross-entropy that is trained "
        "on; attacks do not see it",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of initial weights, order, noise and split")
    device: Literal["auto", "cpu", "cuda"] = _Aside("auto", description="where to compute")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision")
    autocast: Literal["none", "float16", "bfloat16"] = Field(
        "none",
        description="half precision for the network's passes in training: float16, or bfloat16 on cards that have it; "
        "never in evaluation",
    )
    allow: Annotated[tuple[Allowed, ...], Strict(False)] = _Aside(
        (),
        description="train a network that the check at the start refuses: random, its answers differ from call to "
        "call; coupled, an answer depends on the other samples of the batch; not-finite, NaN or infinite values",
    )
    tf32: bool = Field(
        False,
        description="on cards from the A100 on, train with float32 products rounded to TF32's 10-bit mantissa: faster; "
        "never in evaluation",
    )
    compile: bool = _Aside(
        False,
        description="compile the PGD steps of training with torch.compile: faster for small networks, after up to "
        "half a minute at the start; the same result to rounding",
    )
    cuda_graphs: bool = _Aside(
        False,
        description="on a card, run the attacks of small networks in training as CUDA graphs, which the host launches "
        "at once; the same result",
    )
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    attack: AttackConfig = AttackConfig()
    trades: TradesConfig = TradesConfig()
    rand: RandConfig = RandConfig()
    smoothing: SmoothingConfig = SmoothingConfig()
    iaat: IaatConfig = IaatConfig()
    fat: FatConfig = FatConfig()
    nfgsm: NfgsmConfig = NfgsmConfig()
    eval: EvalConfig = EvalConfig()

    @property
    def expansion(self) -> float:
        """Δε of Algorithm 2: by how much an uncrossed margin grows per epoch; γ of iaat."""
        if self.delta_eps is not None:
            return self.delta_eps
        return self.eps_max * _IAAT_GAMMA if self.method == "iaat" else self.eps_max / self.epochs

    @property
    def margins_bounded(self) -> bool:
        """False where ``eps_max`` says nothing about the margins: with AME."""
        return self.method != "ima" or self.margin_rule != "ame"

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Fewest and most workers of ``--workers MIN-MAX``; None if their number is fixed, or left to the launcher."""
        return whole_range(self.workers) if isinstance(self.workers, str) else None

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        attacks, noise = self.eval.attacks, self.eval.noise
        if not 0 < self.expansion <= self.eps_max:
            raise ConfigError(
                f"--delta-eps must be above 0 and at most --eps-max ({self.eps_max}), not {self.delta_eps}."
            )
        if self.margin_rule != "paper" and self.margin_update != "online":
            raise ConfigError(
                f"--margin-rule {self.margin_rule} takes margins from the training step: leave --margin-update out, or "
                "give --margin-update online."
            )
        if self.autocast != "none" and self.dtype != "float32":
            raise ConfigError(f"--autocast {self.autocast} goes with --dtype float32, not {self.dtype}.")
        if self.tf32 and self.dtype != "float32":
            raise ConfigError(f"--tf32 goes with --dtype float32, not {self.dtype}.")
        if self.cuda_graphs and self.device == "cpu":
            raise ConfigError("--cuda-graphs needs a card: leave it out with --device cpu.")
        only = ONLY_NORM.get(self.method, self.norm)
        if only != self.norm:
            name = {"linf": "L∞", "l2": "L2"}[only]
            raise ConfigError(
                f"--method {self.method} exists only for the {name} norm: add --norm {only}, or choose another method."
            )
        last = Schedule.read(self.optimizer.schedule).epochs_of(self.epochs)[-1:] or (0.0,)
        if last[0] >= self.epochs:
            raise ConfigError(
                f"--optimizer.schedule {self.optimizer.schedule} has a step after the last of {self.epochs} epochs: "
                "give earlier ones, or shares such as steps:50%,75%."
            )
        if self.optimizer.schedule == "cosine" and self.optimizer.warmup >= self.epochs:
            raise ConfigError(f"--optimizer.warmup must be below the number of epochs, {self.epochs}.")
        if self.patience is not None and self.eval.val_noise is None:
            raise ConfigError(
                "--patience needs --eval.val-noise, the noise level of the attack on validation samples after each "
                "epoch."
            )
        if not attacks or len(set(attacks)) < len(attacks):
            raise ConfigError("--eval.attacks needs at least one attack, and each once.")
        check_smoothing(self)
        if not noise:
            raise ConfigError("--eval.noise needs at least one level, for example --eval.noise 0,0.1,0.2.")
        if tuple(sorted(set(noise))) != noise:
            raise ConfigError("--eval.noise must be given in ascending order, each level once.")
        return self

    def fingerprint(self) -> str:
        """Hash of all that determines weights and margins; equal on any number of workers or devices."""
        text = json.dumps(result_fields(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# The options of the first version are in every fingerprint. A later one is in it only where it is used, that is,
# differs from its default: so the fingerprints of earlier configurations stay. This list never grows.
_FIRST = frozenset(
    """preset method norm eps_max delta_eps beta margin_update epochs batch_size seed dtype
    data data.source data.subset data.noise model model.factory model.sync_batch_norm
    optimizer optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum optimizer.halve_every
    attack attack.steps attack.bisections attack.step_scale attack.boundary_side trades trades.inverse_lambda
    eval""".split()  # noqa: SIM905
)


# Options of the evaluation on which it depends when --patience ends.
_STOPPING = ("val_noise", "val_steps", "val_samples", "order")


def result_fields(part: BaseModel, prefix: str = "") -> dict[str, Any]:
    """What determines weights and margins, as a nested dictionary of plain values."""
    out: dict[str, Any] = {}
    for name, option in type(part).model_fields.items():
        value, first = getattr(part, name), prefix + name in _FIRST
        if isinstance(value, BaseModel):
            inside = result_fields(value, f"{prefix}{name}.")
            if inside or first:
                out[name] = inside
        elif first or (option.json_schema_extra is None and value != option.default):
            out[name] = list(value) if isinstance(value, tuple) else value
    if isinstance(part, Config):
        out["delta_eps"] = part.expansion
        if part.patience is not None:
            out["eval"] = {name: getattr(part.eval, name) for name in _STOPPING}
    return out

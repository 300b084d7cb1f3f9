"""The options of a run: one field each, with its help text and what it accepts.

The command line and config.yaml are derived from the fields, so an option is added in one place. Only its default,
once released, must stay as it is: older runs have not saved it, and are taken to have used that.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator, Strict, model_validator

from ima_dist.config.arguments import checked_arguments
from ima_dist.config.attacks import ATTACK_TABLE, ATTACKS
from ima_dist.config.augmentations import KINDS
from ima_dist.config.checked import Checked
from ima_dist.config.class_weights import weights_text
from ima_dist.config.errors import ConfigError
from ima_dist.config.forms import (
    absolute_if_file,
    is_augmentation,
    is_channels,
    is_name,
    is_reference,
    is_source,
    is_window,
    is_worker_count,
    whole_range,
)
from ima_dist.config.numbers import level
from ima_dist.config.sources import SOURCES

Method = Literal["ima", "ce", "adv", "rand", "trades", "mma", "ddn", "external"]
Norm = Literal["linf", "l2"]
Allowed = Literal["random", "coupled", "not-finite"]
#: A network that was trained elsewhere and is only evaluated here; its configuration says that it has one epoch.
EXTERNAL = "external"
#: The methods that train.
METHODS: tuple[str, ...] = tuple(name for name in get_args(Method) if name != EXTERNAL)
NORMS: tuple[str, ...] = get_args(Norm)
if TYPE_CHECKING:
    AttackName = str
else:
    AttackName = Literal[ATTACKS]

# An option that weights and margins cannot depend on, such as where to compute.
_Aside = partial(Field, json_schema_extra={"alters_result": False})


Reference = Annotated[str, AfterValidator(is_reference)]
Source = Annotated[str, AfterValidator(is_source)]
Arguments = Annotated[dict[str, Any], AfterValidator(checked_arguments)]
Level = Annotated[float, BeforeValidator(level)]


class DataConfig(Checked):
    source: Source = Field(
        description=f"form of your data: {', '.join(SOURCES)}; or a function that loads them, as pkg.module:function"
    )
    dir: str | None = _Aside(None, description="directory that holds the data files, or a prepared copy of them")
    download: bool = _Aside(False, description="fetch missing files and check their checksums")
    subset: int | None = Field(
        None,
        ge=1,
        description="train on this many samples, as many of each class, or in proportion where classes are too small; "
        "test set in proportion",
    )
    noise: float = Field(0.06, ge=0, description="moons: standard deviation of the noise added to the points")
    # Runs from before this option have 5000 (presets.py has the sizes of new ones).
    val_size: int = Field(
        5000,
        ge=1,
        description="fashion_mnist, mnist, svhn, cifar10: how many of the published training images are held out for "
        "validation; of fewer images the same share (default: a tenth)",
    )
    size: int | None = Field(
        None, ge=1, description="own images: side in pixels to which they are resized (default: theirs, if all agree)"
    )
    channels: Annotated[int, AfterValidator(is_channels)] | None = Field(
        None, description="own images: 1 for grey, 3 for RGB (default: 1 if all are grey, else 3)"
    )
    resize: Literal["fit", "crop", "pad"] = Field(
        "fit",
        description="own images that are not square: squeezed to fit, cropped to the middle, or padded with black",
    )
    window: Annotated[tuple[float, ...], Strict(False), AfterValidator(is_window)] = Field(
        (),
        description="own data of more than 8 bits: LOW,HIGH, beyond which values are cut; noise levels are then in "
        "their units",
    )
    groups: Annotated[str, AfterValidator(absolute_if_file)] | None = Field(
        None,
        description="what must not be split, such as patients: a CSV file of name,group; a column of a list; a regular "
        "expression on the samples' names, whose parenthesis is the group; or header",
    )
    split: Annotated[tuple[Annotated[float, Ge(0)], ...], Strict(False)] = Field(
        (70.0, 15.0, 15.0),
        description="own data that have no parts: shares of training, validation and test samples, by group and class",
    )
    args: Arguments = Field({}, description="keyword argument KEY of your own function that loads the data")
    place: Literal["auto", "device", "host", "disk"] = _Aside(
        "auto",
        description="where samples are while they are used; batches are copied from the host's memory, or read from "
        "the disk, ahead of their use; auto goes by what is free",
    )
    augment: Annotated[str, AfterValidator(is_augmentation)] | None = Field(
        None,
        description="random changes of the training images, such as crop:4,flip,rotate:10,brightness:0.1 "
        f"({', '.join(KINDS)}); none; or your own function of (x, keys), as pkg.module:function",
    )

    @model_validator(mode="after")
    def _fits_the_source(self) -> DataConfig:
        if len(self.split) != 3 or not (self.split[0] and self.split[2]):
            raise ConfigError(
                "--data.split needs three shares, of training, validation and test samples, such as 70,15,15; only "
                "that of the validation samples may be 0."
            )
        given = [f"--data.{name}" for name in ("size", "channels", "window") if getattr(self, name)]
        given += ["--data.resize"] if self.resize != "fit" else []
        if given and self.source not in SOURCES:
            raise ConfigError(
                f"{given[0]} goes with --data.source {'|'.join(SOURCES)}, not with {self.source}: give a function of "
                "your own its arguments by --data.args.KEY."
            )
        return self


class ModelConfig(Checked):
    factory: Reference = Field(description="function that builds the network, as pkg.module:function")
    sync_batch_norm: bool = Field(
        False, description="batch norm over the global batch instead of each worker's share (GPUs only; slower)"
    )
    args: Arguments = Field({}, description="keyword argument KEY of your own function that builds the network")
    mean: Annotated[tuple[float, ...], Strict(False)] = Field(
        (), description="subtracted from the inputs inside the network: one value per channel, or one for all"
    )
    std: Annotated[tuple[Annotated[float, Gt(0)], ...], Strict(False)] = Field(
        (), description="by which the inputs are then divided; noise levels stay in units of the data"
    )
    weights: str | None = _Aside(
        None, description="file of weights from which the training starts: safetensors, or tensors by torch.save"
    )
    weights_sha256: str | None = Field(
        None, description="SHA-256 that this file must have (default: that of the file, which is stored)"
    )
    weights_strict: bool = Field(
        True, description="refuse weights that the network lacks, or that it has and the file has not (default: true)"
    )

    @model_validator(mode="before")
    @classmethod
    def _sums_up(cls, values: Any) -> Any:
        """Add the checksum of the file of weights, which is what a result depends on."""
        if not isinstance(values, dict) or not values.get("weights") or values.get("weights_sha256"):
            return values
        path = Path(str(values["weights"])).absolute()
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(f"--model.weights {path} cannot be read ({error.strerror}): check the path.") from None
        return {**values, "weights": str(path), "weights_sha256": found}


class OptimizerConfig(Checked):
    name: Literal["adam", "adamw", "adamax", "sgd"] = Field("adam", description="optimiser")
    lr: float = Field(1e-3, gt=0, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum (sgd)")
    halve_every: int | None = Field(None, ge=1, description="halve the learning rate after this many epochs")


class AttackConfig(Checked):
    """Settings of the attack inside training (Algorithm 3; paper, section 3)."""

    steps: int = Field(20, ge=1, description="PGD steps in training (N_PGD)")
    bisections: int = Field(10, ge=0, description="halvings of the bracket around the boundary (N_binary)")
    step_scale: float = Field(4.0, gt=0, description="α: total length of the steps, in radii of the ball")
    boundary_side: Literal["midpoint", "inside", "outside"] = Field(
        "midpoint", description="which point of the last bracket is used"
    )


class TradesConfig(Checked):
    inverse_lambda: float = Field(
        6.0, gt=0, description="trades: weight of the divergence against the clean loss (1/lambda)"
    )


class EvalConfig(Checked):
    attacks: Annotated[tuple[AttackName, ...], Strict(False)] = _Aside(
        ("pgd100", "worst"),
        description="attacks to evaluate with: " + "; ".join(f"{a.name}, {a.about}" for a in ATTACK_TABLE.values()),
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
        gt=0, description="noise level in training, the largest one for ima (epsilon_max), mma (d_max) and ddn"
    )
    delta_eps: Level | None = Field(
        None, description="margin expansion step of ima, smallest radius of mma (default: eps-max / epochs)"
    )
    beta: float = Field(0.5, ge=0, le=1, description="ima: weight of the noisy samples in the loss, 0 to 1")
    margin_update: Literal["epoch", "online"] = Field(
        "epoch", description="ima: margins from a pass after each epoch (the paper) or from the training step"
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
    checkpoint_every: int | None = _Aside(
        None, ge=1, description="also write a checkpoint every so many steps, for long epochs (default: after epochs)"
    )
    class_weights: Annotated[str, AfterValidator(weights_text)] | None = Field(
        None,
        description="weight of each class in the loss: balanced, the same for each class as a whole; or a CSV file of "
        "class,weight (default: all samples weigh the same)",
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
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    attack: AttackConfig = AttackConfig()
    trades: TradesConfig = TradesConfig()
    eval: EvalConfig = EvalConfig()

    @property
    def expansion(self) -> float:
        """Δε of Algorithm 2: by how much an uncrossed margin grows per epoch."""
        return self.eps_max / self.epochs if self.delta_eps is None else self.delta_eps

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
        if self.autocast != "none" and self.dtype != "float32":
            raise ConfigError(f"--autocast {self.autocast} goes with --dtype float32, not {self.dtype}.")
        if self.tf32 and self.dtype != "float32":
            raise ConfigError(f"--tf32 goes with --dtype float32, not {self.dtype}.")
        if self.method == "ddn" and self.norm != "l2":
            raise ConfigError("--method ddn exists only for the L2 norm: add --norm l2, or choose another method.")
        if not attacks or len(set(attacks)) < len(attacks):
            raise ConfigError("--eval.attacks needs at least one attack, and each once.")
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
    return out

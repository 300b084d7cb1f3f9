"""Network, optimiser and precision as configured. Used by the driver's checks and the workers."""

import contextlib
import inspect
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from ima_dist.attacks.common import evaluation_mode
from ima_dist.config.arguments import check_call
from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.references import resolve_reference
from ima_dist.config.schedule import rate_factor
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.data.types import DataSet
from ima_dist.models.libraries import normalised
from ima_dist.rundir.directory import RunDir
from ima_dist.training import start_weights
from ima_dist.training.tensors import in_precision, own_memory

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# The normalisation layers of torch, and so those of libraries that derive from them. torch 2.3 has no RMSNorm.
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def limit_threads(data: DataSet) -> None:
    """Use one CPU thread if samples are tiny: handing work to another thread costs more than it saves."""
    if math.prod(data.train.shape) < 256:
        torch.set_num_threads(1)


@contextlib.contextmanager
def few_threads(data: DataSet) -> Iterator[None]:
    """``limit_threads`` inside the block."""
    before = torch.get_num_threads()
    limit_threads(data)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def generators_as_before(devices: Sequence[int] = ()) -> Iterator[None]:
    """After the block, torch's, NumPy's and Python's generators are as before; those of cards if they are named."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block, torch's, NumPy's and Python's generators start from the seed; afterwards they are as before."""
    with generators_as_before():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


@contextlib.contextmanager
def torch_as_before() -> Iterator[None]:
    """After the block, what a task sets for the whole process is as before, for a notebook that goes on."""
    threads = torch.get_num_threads()
    cards = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with generators_as_before(cards), _precision_as_before():
            yield
    finally:
        torch.set_num_threads(threads)


def use_tf32(allowed: bool) -> None:
    """Let cards round float32 products to TF32's 10-bit mantissa, or compute all of float32 as float32.

    torch allows TF32 in cuDNN's convolutions by default, so it must be switched off; and the user's modules may have
    switched it on for everything. Process-wide.
    """
    if hasattr(torch.backends, "fp32_precision"):
        # What is not set one by one follows this one.
        torch.backends.fp32_precision = "ieee"
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")


@contextlib.contextmanager
def _precision_as_before() -> Iterator[None]:
    """After the block, the settings that ``use_tf32`` changes are as before."""
    every = getattr(torch.backends, "fp32_precision", None)
    cudnn, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        if hasattr(torch.backends, "fp32_precision"):
            torch.backends.fp32_precision = every
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(products)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Inside the block all of float32 is computed as float32, on cards too; afterwards the settings are as before."""
    with _precision_as_before():
        use_tf32(False)
        yield


def make_network(config: Config, data: DataSet, run: RunDir | None = None, *, trained: bool = False) -> nn.Module:
    """``build_network`` for a data set."""
    return build_network(config, data.num_classes, data.train.shape, run, trained=trained)


def build_network(
    config: Config, num_classes: int, shape: tuple[int, ...], run: RunDir | None = None, *, trained: bool = False
) -> nn.Module:
    """The configured network with weights drawn from the seed, or given, in the configured precision.

    Lazy modules get their weights here, too. Given weights are those that ``run`` keeps, or else the user's; they are
    left out if the caller has those of a ``trained`` network. Raises ConfigError if the factory fails, returns no
    nn.Module, or its network does not turn two samples into logits (2, num_classes).
    """
    factory = resolve_reference(config.model.factory, "model.factory")
    check_call(factory, config.model.factory, "model.args", 2, config.model.args)
    # Only the CPU's generators: the others would wake every card of the machine, on the driver too.
    with seeded(config.seed):
        try:
            network = factory(num_classes, shape, **config.model.args)
        except Exception as error:
            raise ConfigError(
                f"--model.factory {config.model.factory} failed for {num_classes} classes and samples of "
                f"shape {shape}: {first_line(error)}."
            ) from error
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"--model.factory {config.model.factory} must return a torch.nn.Module, not {type(network).__name__}."
            )
        trial = torch.zeros(2, *shape)
        if any(is_lazy(t) for t in (*network.parameters(), *network.buffers())):
            _tried(config, network, trial, num_classes)
        if config.model.weights and not trained:
            start_weights.start(network, config.model, run, whole=config.method == EXTERNAL)
        network = normalised(network, config.model.mean, config.model.std, shape)
        network = in_precision(own_memory(network, config.model.factory), DTYPES[config.dtype])
        _tried(config, network, trial.to(DTYPES[config.dtype]), num_classes)
    return in_training_mode(network)


def _tried(config: Config, network: nn.Module, trial: Tensor, classes: int) -> None:
    """One pass in evaluation mode. Raises ConfigError unless it returns logits."""
    try:
        with torch.no_grad(), evaluation_mode(network):
            found = network(trial)
    except Exception as error:
        raise ConfigError(
            f"The network of {config.model.factory} does not take samples of shape {tuple(trial.shape[1:])}: "
            f"{first_line(error)}."
        ) from error
    check_logits(found, len(trial), classes, config.model.factory, "evaluation")


def check_logits(found: Any, samples: int, classes: int, factory: str, mode: str) -> None:
    """Raise ConfigError unless ``found``, which the network returned in this mode, is (samples, classes)."""
    who = f"The network of {factory} returns"
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"{who} a {type(found).__name__} in {mode} mode, not logits: return only the tensor (B, {classes})."
        )
    if tuple(found.shape) != (samples, classes):
        hint = "; for two classes return two outputs" if tuple(found.shape) in ((samples, 1), (samples,)) else ""
        raise ConfigError(
            f"{who} an output of shape {tuple(found.shape)} for {samples} samples in {mode} mode; "
            f"({samples}, {classes}) is needed{hint}."
        )


def make_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    """The configured optimiser; all other settings are torch's defaults."""
    settings = config.optimizer
    parameters: list[Any] = [p for p in network.parameters() if p.requires_grad]
    # torch's default on a CPU takes the parameters one by one, for the same numbers in up to three times the time.
    together = True if all(p.device.type == "cpu" for p in parameters) else None
    if not settings.decay_norms:
        of_norms = {p for m in network.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
        spared = [p for p in parameters if p in of_norms]
        parameters = [
            {"params": [p for p in parameters if p not in of_norms]},
            {"params": spared, "weight_decay": 0.0},
        ]
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            foreach=together,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}[settings.name]
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay, foreach=together)


def learning_rate(config: Config, epoch: int, step: int = 0, steps: int = 1) -> float:
    """Learning rate of the step after ``step`` of the ``steps`` of an epoch and ``epoch`` complete epochs."""
    settings = config.optimizer
    halved = 0.5 ** (epoch // settings.halve_every) if settings.halve_every else 1.0
    factor = rate_factor(settings.schedule, settings.warmup, config.epochs, steps, epoch * steps + step)
    return settings.lr * halved * factor


def in_training_mode(network: nn.Module) -> nn.Module:
    """The network with every layer in the mode that it is trained in.

    A layer that its factory has put into evaluation mode stays there, as does one that an overridden ``train()``
    leaves there. Nothing else in the project calls ``train()`` or ``eval()``: ``evaluation_mode`` sets and restores
    each layer's own flag.
    """
    frozen = [m for m in network.modules() if not m.training]
    network.train()
    for m in frozen:
        m.training = False
    return network


def data_parallel(network: nn.Module, device: torch.device, find_unused: bool) -> DistributedDataParallel:
    """The network with gradients that are averaged over the workers. Collective.

    find_unused: some parameters may have no gradient in a step; looking for them costs a little in each.
    """
    # Buffers stay local: a broadcast would change them between two forward passes of one step.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False, "find_unused_parameters": find_unused}
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, **options)


# ---- half precision (--autocast), for training and its attacks; evaluation never uses it


class Autocast(nn.Module):
    """A network whose passes run under ``torch.autocast``, from float32 samples (B, ...) to float32 logits (B, C).

    An attack's gradient needs no scaling: ``logits_and_gradient`` starts it at the logits with size 1, however
    confident the network is. Gradients of the parameters are sums over samples and need ``scaler``.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, HALF[self.kind]):
            return self.network(x).float()


def autocast(network: nn.Module, kind: str) -> nn.Module:
    """The network itself for ``"none"``, else its ``Autocast``; parameters and modules are shared."""
    return network if kind == "none" else Autocast(network, kind)


def scaler(kind: str, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for the parameters' gradients; disabled except for float16."""
    return torch.amp.GradScaler(device.type, enabled=kind == "float16")

"""Weights that a training starts from (``--model.weights``): read, and fitted to the network."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from ima_dist.config.errors import ConfigError, DataWarning, first_line
from ima_dist.config.schema import ModelConfig
from ima_dist.rundir.directory import RunDir

# Names under which people save the weights, beside those of the optimiser, an epoch, and so on.
_INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
# What DataParallel, torch.compile and Lightning put before the names of all weights.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")


def read(file: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, or in one of ``torch.save`` (tensors only: nothing else is unpickled).

    Raises ConfigError.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--model.weights {file} cannot be read ({error.strerror}).") from error
    zipped, pickled = content[:4] == b"PK\x03\x04", content[:1] == b"\x80"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of old ways to pickle
            found: Any = (
                torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                if zipped or pickled
                else from_safetensors(content)
            )
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"--model.weights {file} holds more than tensors, and unpickling it could run any code: save only "
            "network.state_dict()."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ConfigError(
            f"--model.weights {file} is damaged, or neither safetensors nor made by torch.save: {first_line(error)}."
        ) from error
    for name in _INSIDE:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ConfigError(f"--model.weights {file} does not hold a state dict: save network.state_dict().")
    return {str(name): value for name, value in found.items()}


def fit(network: nn.Module, weights: dict[str, Tensor], settings: ModelConfig, whole: bool = False) -> list[str]:
    """Load ``weights`` into ``network``, both as made by ``settings``; returns sentences on what had to be changed.

    A last layer for another number of classes keeps the weights drawn from the seed, unless the ``whole`` network must
    be the given one, because it is not trained. Raises ConfigError.
    """
    own = network.state_dict()
    weights, remarks = _renamed(weights, own), []
    for name, value in weights.items():
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            raise ConfigError(f"--model.weights has {name} as {value.dtype}, but the network as {own[name].dtype}.")
    for name in weights:
        if name in own and _is_stem_for_colours(weights[name], own[name]):
            # The same as three equal channels.
            weights[name] = weights[name].sum(1, keepdim=True)
            remarks.append(f"The given weights are for colours: {name} is summed over its three channels.")
    misfits = sorted(name for name in weights if name in own and weights[name].shape != own[name].shape)
    head = set() if whole else _head(network)
    if misfits and set(misfits) <= head and all(weights[n].shape[1:] == own[n].shape[1:] for n in misfits):
        layer = misfits[0].rpartition(".")[0]
        of = f"{len(weights[misfits[0]])} classes, not {len(own[misfits[0]])}"
        remarks.append(f"The last layer ({layer}) of the given weights is for {of}: it starts untrained.")
        weights = {name: value for name, value in weights.items() if name not in head}
        own = {name: value for name, value in own.items() if name not in head}
        misfits = []
    if misfits:
        name = misfits[0]
        raise ConfigError(
            f"--model.weights does not fit {settings.factory}: {name} has the shape {tuple(weights[name].shape)}, not "
            f"{tuple(own[name].shape)}."
        )
    missing, left = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or left:
        both = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(left)} too much"] * bool(left)
        text = f"--model.weights does not fit {settings.factory}: it {' and '.join(both)}"
        if missing and whole:
            raise ConfigError(f"{text}, and a network that is not trained here needs all of its weights.")
        if settings.weights_strict:
            hint = "leaves out what is too much" if whole else "starts with what fits"
            raise ConfigError(f"{text}; --model.weights-strict false {hint}.")
        if len(missing) == len(own):
            raise ConfigError(f"{text}: nothing fits.")
        remarks.append(f"{text}.")
    network.load_state_dict({name: weights[name] for name in weights if name in own}, strict=False)
    return remarks


def start(network: nn.Module, settings: ModelConfig, run: RunDir | None, whole: bool = False) -> None:
    """Load the weights that ``settings`` name into ``network``: those that the run keeps, else the user's file.

    whole: as in ``fit``. Warns (DataWarning) of what had to be changed; raises ConfigError.
    """
    kept = sorted(run.start_dir.glob("weights-*.safetensors")) if run is not None else []
    if kept and hashlib.sha256(kept[0].read_bytes()).hexdigest()[:16] != kept[0].stem.removeprefix("weights-"):
        raise ConfigError(f"{kept[0]} is damaged (checksum): restore it from a copy.")
    remarks = fit(network, read(kept[0]) if kept else _given(settings), settings, whole)
    for remark in remarks if not kept else ():  # the run's were remarked upon when it began
        warnings.warn(remark, DataWarning, stacklevel=2)


def _given(settings: ModelConfig) -> dict[str, Tensor]:
    """The weights in the user's file, if it is still the one that was meant. Raises ConfigError."""
    file = Path(str(settings.weights))
    weights = read(file)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != settings.weights_sha256:
        raise ConfigError(f"--model.weights {file} has the SHA-256 {found}, not {settings.weights_sha256}.")
    return weights


def keep(run: RunDir, settings: ModelConfig) -> None:
    """Keep the weights that the run starts from in its directory, for workers on other machines.

    Raises OSError, LeaseLost.
    """
    if settings.weights is None:
        return
    content = to_safetensors({k: v.contiguous().clone() for k, v in _given(settings).items()})
    run.start_dir.mkdir(exist_ok=True)
    with run.replacing(run.start_dir / f"weights-{hashlib.sha256(content).hexdigest()[:16]}.safetensors") as file:
        file.write(content)


def _renamed(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` without prefixes that all their names share and none of the network's has."""
    while True:
        shared = next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), None)
        if shared is None or any(name.startswith(shared) for name in own):
            return weights
        weights = {name.removeprefix(shared): value for name, value in weights.items()}


def _is_stem_for_colours(given: Tensor, own: Tensor) -> bool:
    """Whether a convolution's weights take three channels where the network's take one."""
    return given.dim() == 4 and given.shape[1] == 3 and own.shape == (len(given), 1, *given.shape[2:])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _head(network: nn.Module) -> set[str]:
    """Names of the weights of the last layer that has logits as its output."""
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        return set()
    name, layer = layers[-1]
    return {f"{name}.{kind}" for kind, _ in layer.named_parameters(recurse=False)}

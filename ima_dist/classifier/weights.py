"""Weights from a safetensors file into a network, with what does not fit in one sentence."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from ima_dist.config.errors import ConfigError, first_line

# The first bytes of what torch.save writes: a zip archive, or in old files a pickle.
_PICKLED = (b"PK\x03\x04", b"\x80")


def load_weights(network: nn.Module, file: Path, digest: str | None) -> None:
    """Load the file in place. ``digest``: its SHA-256.

    Raises ConfigError if the file is missing, pickled, truncated or otherwise changed, or if its tensors have other
    names, shapes or precisions than those of the network.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): restore it from a copy.") from None
    if content.startswith(_PICKLED):
        raise ConfigError(f"{file} is a pickled file, which could run any code and is not read: give safetensors.")
    if hashlib.sha256(content).hexdigest() != digest:
        raise ConfigError(f"{file} is damaged or another file (its checksum differs): restore it from a copy.")
    try:
        tensors = safetensors.load(content)
    except SafetensorError as error:
        raise ConfigError(f"{file} is no whole safetensors file ({first_line(error)}): restore it.") from None
    misfit = _misfit(network, tensors)
    if misfit is None:
        try:
            # It copes with tied weights, which are stored once.
            safetensors.load_model(network, file)
        except RuntimeError as error:
            misfit = first_line(error)
    if misfit is not None:
        raise ConfigError(f"The weights in {file} are of another network: {misfit}.")


def _misfit(network: nn.Module, tensors: dict[str, Tensor]) -> str | None:
    """Why the tensors, by name, are not those of the network; None if all that are there fit."""
    own = network.state_dict()
    for name, tensor in tensors.items():
        if name not in own:
            return f"it has no {name}"
        if own[name].shape != tensor.shape:
            return f"{name} has shape {tuple(tensor.shape)}, where {tuple(own[name].shape)} is needed"
        if own[name].dtype != tensor.dtype:
            found, needed = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, own[name].dtype))
            return f"{name} is {found}, where {needed} is needed"
    return None

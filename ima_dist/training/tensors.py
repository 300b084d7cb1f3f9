"""The tensors of a network: in one precision, each in memory of its own, in a file and back."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from ima_dist.config.errors import ConfigError

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
# Where a tensor's values lie: two with the same place are one.
_Place = tuple[Any, ...]


def in_precision(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with its floating-point and complex tensors in the precision of ``dtype``, in place."""

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(_COMPLEX[dtype])
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    # Not network.to(dtype), which drops the imaginary part of complex tensors.
    return network._apply(converted)


def own_memory(network: nn.Module, factory: str) -> nn.Module:
    """The network with slices and expanded tensors replaced by copies, which can be saved and written to, in place.

    Tensors that are the same (tied) stay so. Raises ConfigError if two share only a part of their memory.
    """
    parts = [
        (f"{path}.{key}" if path else key, module, key, tensor)
        for path, module in network.named_modules()
        for group in (module._parameters, module._buffers)
        for key, tensor in group.items()
        if tensor is not None and _is_plain(tensor)
    ]
    spans = sorted((t.untyped_storage().data_ptr(), *_span(t), name, _place(t)) for name, _, _, t in parts if t.numel())
    for one, other in pairwise(spans):
        if one[0] == other[0] and other[1] < one[2] and one[4] != other[4]:
            raise ConfigError(
                f"The network of {factory} has tensors that share a part of their memory, {one[3]!r} and "
                f"{other[3]!r}: register only one of them, and take the other from it in forward()."
            )
    copies: dict[_Place, Tensor] = {}
    for _, module, key, tensor in parts:
        if not tensor.numel() or _owns_its_memory(tensor):
            continue
        copy = copies.setdefault(_place(tensor), tensor.detach().clone(memory_format=torch.contiguous_format))
        if isinstance(tensor, nn.Parameter):
            tensor.data = copy
        else:
            setattr(module, key, copy)
    return network


def save(network: nn.Module, file: Path) -> None:
    """Write the network's state dict as safetensors; of tied tensors one, with the other names in the metadata."""
    kept: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    first: dict[_Place, str] = {}
    for name, tensor in network.state_dict().items():
        same = first.setdefault(_place(tensor), name) if _is_plain(tensor) and tensor.numel() else name
        if same == name:
            # safetensors has no double-precision complex numbers.
            tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            kept[name] = tensor.contiguous() if _owns_its_memory(tensor) else tensor.clone().contiguous()
        else:
            others[name] = same
    safetensors.save_file(kept, file, metadata=others)


def load(network: nn.Module, file: Path) -> None:
    """Load what ``save`` wrote, or safetensors' own ``save_model``, in place.

    Raises RuntimeError if names or shapes are others than the network's.
    """
    found = safetensors.load(file.read_bytes())
    own = network.state_dict()
    present = {_place(own[name]): name for name in found if name in own and own[name].numel()}
    for name, tensor in own.items():
        if name not in found and tensor.numel() and _place(tensor) in present:
            found[name] = found[present[_place(tensor)]]
        if tensor.is_complex() and name in found and not found[name].is_complex():
            found[name] = torch.view_as_complex(found[name])
    network.load_state_dict(found)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _place(tensor: Tensor) -> _Place:
    return (str(tensor.device), tensor.data_ptr(), str(tensor.dtype), tuple(tensor.shape), tensor.stride())


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte and one past the last, from the beginning of its storage."""
    size, first = tensor.element_size(), tensor.storage_offset()
    last = first + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(first * size), int((last + 1) * size)


def _owns_its_memory(tensor: Tensor) -> bool:
    """Whether it is dense in any order of its axes, and alone in its storage."""
    return not _is_plain(tensor) or tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()

"""Networks of torchvision and timm, by name: ``--model.factory torchvision:resnet18`` or ``timm:resnet18``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ima_dist.config.errors import ConfigError, did_you_mean

Factory = Callable[..., nn.Module]


def factory(library: str, name: str) -> Factory:
    """A function (num_classes, input_shape, **arguments) -> the library's network of this name, untrained.

    Classes and channels are adapted, and the size of images where a network is made for one size. Raises ConfigError if
    the library is not installed or has no such network.
    """
    return {"torchvision": _of_torchvision, "timm": _of_timm}[library](name)


def _of_torchvision(name: str) -> Factory:
    from torchvision import models

    known = models.list_models(models)
    if name not in known:
        raise ConfigError(f"torchvision has no network {name!r}{did_you_mean(name, known)}.")

    def build(num_classes: int, input_shape: tuple[int, ...], **arguments: Any) -> nn.Module:
        channels, height, _ = _image(input_shape)
        # These would also return the logits of auxiliary heads in training mode.
        fixed: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
        if name.startswith("vit_"):
            fixed["image_size"] = height
        network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **{**fixed, **arguments})
        return network if channels == 3 else with_channels(network, channels)

    return build


_AUXILIARY = ("googlenet", "inception_v3")


def _of_timm(name: str) -> Factory:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"--model.factory timm:{name} needs timm, which is not installed: pip install timm."
        ) from error
    known = timm.list_models()
    if name not in known:
        raise ConfigError(f"timm has no network {name!r}{did_you_mean(name, known)}.")

    def build(num_classes: int, input_shape: tuple[int, ...], **arguments: Any) -> nn.Module:
        channels, height, width = _image(input_shape)
        adapted: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
        published = timm.get_pretrained_cfg(name)
        # Transformers and the like, whose weights depend on the size; the others do not know this argument.
        if published is not None and published.fixed_input_size:
            adapted["img_size"] = (height, width)
        made = timm.create_model(name, pretrained=False, **{**adapted, **arguments})
        assert isinstance(made, nn.Module)
        return made

    return build


def _image(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ValueError(f"it takes images (channels, height, width), not samples of shape {shape}")
    return shape


def with_channels(network: nn.Module, channels: int) -> nn.Module:
    """``network`` with another number of input channels: its first convolution is replaced by an untrained one."""
    for parent in network.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d):
                settings = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation")}
                bias = layer.bias is not None
                setattr(parent, name, nn.Conv2d(channels, layer.out_channels, bias=bias, **settings))
                return network
    raise ValueError(f"it has no convolution that could take {channels} channels")


class Normalised(nn.Module):
    """A network whose inputs are normalised inside it, so that noise stays in the units of the data.

    Logits of ``network((x - mean) / std)``; mean and std have one value per channel, or one for all.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], dimensions: int) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, *[1] * (dimensions - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network((x - self.mean) / self.std)
        return out


def normalised(
    network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], shape: tuple[int, ...]
) -> nn.Module:
    """``network``, or its ``Normalised`` if mean or std are given. Raises ConfigError if their number does not fit."""
    if not mean and not std:
        return network
    for option, values in (("mean", mean), ("std", std)):
        if values and len(values) not in (1, shape[0]):
            raise ConfigError(
                f"--model.{option} has {len(values)} values, but the samples have {shape[0]} channels: give one value, "
                "or one per channel."
            )
    return Normalised(network, mean or (0.0,), std or (1.0,), len(shape))

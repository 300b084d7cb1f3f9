"""Passes in half precision (--autocast), for training and its attacks; evaluation never uses them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# Powers of two that float32 holds as normal numbers, in both directions.
_LARGEST_EXPONENT = 120


class Autocast(nn.Module):
    """A network whose passes run under ``torch.autocast``, from float32 samples (B, ...) to float32 logits (B, C).

    An attack's gradient has no smallest useful size: that of a confidently classified sample may be 1e-20 and
    still has a direction, which float16 would round to zero, and a robust-looking network would be left. So where
    the gradient of the input is asked for, what goes back through a float16 network is scaled, sample by sample, by
    the power of two that brings the largest gradient of its logits to [1/2, 1), and scaled back in float32 at
    the input. That is exact for a network that treats samples independently, as all do in evaluation mode.

    Gradients of the parameters are sums over samples; ``scaler`` is for them.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, x: Tensor) -> Tensor:
        # bfloat16 has float32's exponents.
        scaled = self.kind == "float16" and x.requires_grad
        exponents: list[Tensor] = []
        if scaled:
            x = _Restored.apply(x, exponents)
        with torch.autocast(x.device.type, HALF[self.kind]):
            logits = self.network(x)
        logits = logits.float()
        return _Enlarged.apply(logits, exponents) if scaled else logits


def autocast(network: nn.Module, kind: str) -> nn.Module:
    """The network itself for ``"none"``, else its ``Autocast``; parameters and modules are shared."""
    return network if kind == "none" else Autocast(network, kind)


def scaler(kind: str, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for the parameters' gradients; does nothing but for float16."""
    return torch.amp.GradScaler(device.type, enabled=kind == "float16")


class _Enlarged(torch.autograd.Function):
    """Identity. Its gradient is brought to [1/2, 1), sample by sample; the exponents go to ``exponents``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, exponents: list[Tensor]) -> Tensor:
        ctx.exponents = exponents
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        exponent = torch.frexp(gradient.abs().amax(1)).exponent.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        ctx.exponents[:] = [exponent]
        return torch.ldexp(gradient, -exponent[:, None]), None


class _Restored(torch.autograd.Function):
    """Identity. Its gradient is given the size that ``_Enlarged`` took from it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exponents: list[Tensor]) -> Tensor:
        ctx.exponents = exponents
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (exponent,) = gradients, ctx.exponents
        return torch.ldexp(gradient, exponent.view(-1, *[1] * (gradient.ndim - 1))), None

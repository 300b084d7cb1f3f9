"""Passes in half precision (--autocast), for training and its attacks; evaluation never uses them."""

import torch
from torch import Tensor, nn

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


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

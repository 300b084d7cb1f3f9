"""Steps of PGD as programs of ``torch.compile``, for networks whose operations take longer to launch than to compute.

A program of one step saves little, because calling it takes as long as launching the operations of a small network. So
``STEPS`` steps are one program, for any size of batch from two samples on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import finite, soft_margin_gradient
from ima_dist.config.errors import ConfigError, first_line
from ima_dist.core import norms

STEPS = 5
# Points (B, ...), logits (B, C) and gradients (B, ...) of some steps.
Taken = tuple[list[Tensor], list[Tensor], list[Tensor]]


class Compiled(nn.Module):
    """A network and its program. Single passes run the network as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._program = torch.compile(_steps, dynamic=True)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def steps(self, now: Tensor, y: Tensor, balls: norms.Balls, size: float) -> Taken:
        """``STEPS`` steps of ``size`` radii on the soft margin loss, to rounding as one by one.

        Returns the points after the steps, and the logits and raw gradients before them.
        Raises ConfigError where torch cannot compile the network.
        """
        try:
            taken: Taken = self._program(self.network, now, y, balls, size)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:
            raise ConfigError(
                f"--compile: torch cannot compile the attack on this network ({first_line(e)}). On a CPU this takes a "
                "C++ compiler and Python's headers. Leave the option out."
            ) from e
        return taken


def _steps(network: nn.Module, now: Tensor, y: Tensor, balls: norms.Balls, size: float) -> Taken:
    points, answers, gradients = [], [], []
    for _ in range(STEPS):
        logits, pulled_back, *_ = torch.func.vjp(network, now)
        (gradient,) = pulled_back(soft_margin_gradient(logits, y))
        now = balls.step(now, finite(gradient), size)
        points.append(now)
        answers.append(logits)
        gradients.append(gradient)
    return points, answers, gradients

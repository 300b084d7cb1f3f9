"""PGD steps compiled with ``torch.compile``, for networks whose operations take longer to launch than to compute.

Calling a compiled function takes about as long as one pass of such a network, so a single step would gain little.
``STEPS`` steps are therefore compiled together, once for all batches of at least two samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from ima_dist.attacks.common import finite, soft_margin_gradient
from ima_dist.config.errors import ConfigError, first_line
from ima_dist.core import norms

STEPS = 5
# Points (B, ...), logits (B, C) and gradients (B, ...) of some steps.
Taken = tuple[list[Tensor], list[Tensor], list[Tensor]]


class Compiled(nn.Module):
    """A network with compiled PGD steps; single passes run it as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # In parts (without fullgraph) it would be slower than it is without compiling.
        self._program = torch.compile(_steps, dynamic=True, fullgraph=True)
        #: Whether compiled steps have been taken.
        self.used = False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def steps(self, now: Tensor, y: Tensor, balls: norms.Balls, size: float) -> Taken:
        """``STEPS`` steps of ``size`` radii on the soft margin loss, equal to single steps up to rounding.

        Returns the points after the steps, and the logits and raw gradients before them.
        Raises ConfigError if torch cannot compile the network.
        """
        balls.prepare(size)
        arguments = self.network, now, y, balls, size
        if self.used:
            return self._taken(*arguments)
        try:
            taken = self._taken(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:
            reason = first_line(getattr(e, "inner_exception", None) or e)
            hint = "Install a C++ compiler and Python's headers, or leave" if "C++" in reason else "Leave"
            raise ConfigError(
                f"--compile: torch cannot compile the attack on this network ({reason}). {hint} the option out; on "
                "resuming, give --no-compile."
            ) from e
        self.used = True
        return taken

    def _taken(self, *arguments: Any) -> Taken:
        try:
            taken: Taken = self._program(*arguments)
        except FailOnRecompileLimitHit:
            # torch keeps a few programs of a function, and this process has trained more kinds of networks.
            torch.compiler.reset()
            taken = self._program(*arguments)
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

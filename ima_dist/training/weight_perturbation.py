"""Adversarial weight perturbation (``--awp``; Wu et al., NeurIPS 2020)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ima_dist.training.habits import undisturbed


class Perturbation:
    """Moves the weights of each layer along their gradient, by ``gamma`` times their own L2 norm, and back again.

    As published: a weight is a parameter with at least two dimensions, and biases and the parameters of normalisation
    layers stay. One with a gradient that is zero or not finite stays, too.
    """

    def __init__(self, network: nn.Module, gamma: float) -> None:
        self.network, self.gamma = network, gamma
        self._kept: list[tuple[Tensor, Tensor]] = []

    def ascend(self, rows: Callable[[], tuple[Tensor, Tensor]], scaler: torch.amp.GradScaler) -> Tensor | None:
        """Move the weights until ``undo``. Collective; without gamma nothing happens.

        rows: a pass through the network that is trained, to logits and losses of this worker's samples. On several
        workers it averages their gradients, so that all move alike, as their global batch says.

        Returns the logits before the move, or None.
        """
        if not self.gamma:
            return None
        with undisturbed(self.network):
            logits, losses = rows()
            scaler.scale(losses.sum()).backward()
        self.move()
        self.network.zero_grad(set_to_none=True)
        return logits.detach()

    @torch.no_grad()
    def move(self) -> None:
        """Move along the gradients that the parameters have."""
        for p in self.network.parameters():
            if p.grad is None or p.ndim < 2:
                continue
            self._kept.append((p, p.detach().clone()))
            length = torch.linalg.vector_norm(p.grad)
            usable = (length > 0) & length.isfinite()
            factor = self.gamma * torch.linalg.vector_norm(p) / length
            p.add_(torch.where(usable, p.grad * factor, torch.zeros_like(p)))

    @torch.no_grad()
    def undo(self) -> None:
        """Give the weights the very values from before."""
        for p, value in self._kept:
            p.copy_(value)
        self._kept = []

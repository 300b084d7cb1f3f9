"""Standard training: cross-entropy on clean samples."""

import torch
from torch import Tensor

from ima_dist.attacks.common import Network
from ima_dist.methods.base import Attacked, Batch, Method


class CrossEntropy(Method):
    """The baseline "ce" (paper, section 3)."""

    def attack(self, model: Network, batch: Batch) -> Attacked:
        return Attacked(inputs=batch.x, noisy_of=torch.zeros(0, dtype=torch.int64, device=batch.x.device))

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        return self.cross_entropy(logits, batch.y)

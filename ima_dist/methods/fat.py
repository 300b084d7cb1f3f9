"""Friendly adversarial training (Zhang et al., ICML 2020)."""

import torch
from torch import Tensor

from ima_dist.attacks import shapes
from ima_dist.attacks.common import Network, attack_mode, misclassified
from ima_dist.attacks.friendly import FriendlyResult, early_stopped_pgd
from ima_dist.methods.base import Attacked, Batch, Method


class Friendly(Method):
    """The method "fat": cross-entropy only at the iterate of PGD where each sample stops, τ steps beyond the boundary.

    As published: the loss, and PGD-K-τ from a start that is uniform in the ball of radius ε = ``eps_max``. As in the
    released code: τ grows from 0 to 1 and 2 after 5/12 and 3/4 of the epochs, unless --fat.tau says otherwise. Ours:
    the number and size of the steps are those of adv; L2; the attack runs the network in evaluation mode, and one
    pass more tells what is right without noise. The released code also adds normal noise of 0.001 in each step,
    which the publication does not mention, and which is not here.
    """

    def tau(self, epoch: int) -> int:
        """τ after ``epoch`` complete epochs."""
        if self.config.fat.tau is not None:
            return self.config.fat.tau
        done = (epoch + 1) / self.config.epochs
        return (done > 5 / 12) + (done > 3 / 4)

    def attack(self, model: Network, batch: Batch) -> Attacked:
        config = self.config
        with torch.no_grad(), attack_mode(model):
            correct = ~misclassified(shapes.passed(model, batch.x), batch.y)
        found: FriendlyResult = self.call(
            early_stopped_pgd,
            model,
            batch.x,
            batch.y,
            config.eps_max,
            norm=config.norm,
            tau=self.tau(batch.epoch),
            steps=config.attack.steps,
            step_scale=config.attack.step_scale,
            start=batch.start(config.eps_max, config.norm),
            box=self.box,
        )
        return Attacked(
            inputs=found.x,
            noisy_of=torch.arange(len(found.x), device=found.x.device),
            noisy_only=True,
            correct=correct,
            evaluations=found.evaluations + len(correct),
        )

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        return self.cross_entropy(logits, batch.y)

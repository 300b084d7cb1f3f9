"""N-FGSM: a single step after strong noise (de Jorge et al., NeurIPS 2022)."""

import torch
from torch import Tensor

from ima_dist.attacks.common import Network, attack_mode, cross_entropy, logits_and_gradient, misclassified
from ima_dist.methods.base import Attacked, Batch, Method


class NFGSM(Method):
    """The method "nfgsm", for L∞: cross-entropy only at x + η + ε·sign of the gradient there.

    As published: η is uniform within kε in every coordinate, k = 2 (--nfgsm.noise); the step is as long as
    ε = ``eps_max``; and the sum is not clipped to the ball, so a perturbation may be as large as (k + 1)·ε. As in the
    released code: x + η stays in the data box, and so does the result. Ours: the attack runs the network in
    evaluation mode, and one forward pass more tells what is right without noise. --attack.steps and
    --attack.step-scale are not used.
    """

    def attack(self, model: Network, batch: Batch) -> Attacked:
        eps = self.config.eps_max
        with torch.no_grad(), attack_mode(model):
            correct = ~misclassified(model(batch.x), batch.y)
            noisy = self._in_box(batch.x + batch.start(self.config.nfgsm.noise * eps, "linf"))
            _, gradient = logits_and_gradient(model, noisy, batch.y, cross_entropy)
            noisy = self._in_box(noisy + eps * gradient.sign())
        return Attacked(
            inputs=noisy,
            noisy_of=torch.arange(len(noisy), device=noisy.device),
            noisy_only=True,
            correct=correct,
            evaluations=2 * len(noisy),
        )

    def _in_box(self, x: Tensor) -> Tensor:
        return x if self.box is None else x.clamp(*self.box)

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        return self.cross_entropy(logits, batch.y)

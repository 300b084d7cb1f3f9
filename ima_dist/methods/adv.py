"""Training on clean and noisy samples: adversarial (paper, section 2.1, eq. 2) and random noise (section 3.3)."""

import torch
from torch import Tensor

from ima_dist.attacks.common import Network
from ima_dist.core import norms
from ima_dist.methods.base import Attacked, Batch, Method


class Adversarial(Method):
    """The baseline "adv ε" (Goodfellow et al. 2014; Kurakin et al. 2016; Madry et al. 2018).

    Every sample, correctly classified or not, is trained on clean and at the last iterate of PGD, whose radius ε is
    ``eps_max``.
    """

    def attack(self, model: Network, batch: Batch) -> Attacked:
        noisy = self.pgd(model, batch, batch.start(self.config.eps_max, self.config.norm))
        return Attacked(
            inputs=torch.cat([batch.x, noisy]),
            noisy_of=torch.arange(len(noisy), device=noisy.device),
            evaluations=self.config.attack.steps * len(noisy),
        )

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        """Eq. 2 row by row: half the cross-entropy of B clean and of their B noisy samples, (2B, C) -> (2B,)."""
        return self.cross_entropy(logits, torch.cat([batch.y, batch.y])) / 2


class RandomNoise(Adversarial):
    """The baseline "rand ε" (section 3.3).

    The noise is uniform in the ball of radius ε = ``eps_max``, which under L∞ is the paper's uniform white noise,
    and then clipped to the box. Ours: the loss, that of adv (eq. 2), where the paper gives none; L2; and Gaussian noise
    of standard deviation ε in each value, as randomised smoothing adds it (Cohen et al. 2019): without a ball or a box.
    """

    def attack(self, model: Network, batch: Batch) -> Attacked:
        eps, norm = self.config.eps_max, self.config.norm
        if self.config.rand.kind == "gaussian":
            noisy = batch.x + batch.gaussian(eps)
            return Attacked(torch.cat([batch.x, noisy]), torch.arange(len(noisy), device=noisy.device))
        noisy = norms.clip(batch.x + batch.start(eps, norm), batch.x, eps, norm, self.box)
        return Attacked(inputs=torch.cat([batch.x, noisy]), noisy_of=torch.arange(len(noisy), device=noisy.device))

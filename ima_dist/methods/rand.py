"""Training with random noise (paper, section 3.3)."""

import torch

from ima_dist.attacks.common import Network
from ima_dist.core import norms
from ima_dist.methods.adv import Adversarial
from ima_dist.methods.base import Attacked, Batch


class RandomNoise(Adversarial):
    """The baseline "rand ε", with the loss of adv (eq. 2).

    The noise is uniform in the ball of radius ε = ``eps_max``, which under L∞ is the paper's uniform white noise,
    and then clipped to the box. L2 is ours.
    """

    def attack(self, model: Network, batch: Batch) -> Attacked:
        eps, norm = self.config.eps_max, self.config.norm
        noisy = norms.clip(batch.x + batch.start(eps, norm), batch.x, eps, norm, self.box)
        return Attacked(inputs=torch.cat([batch.x, noisy]), noisy_of=torch.arange(len(noisy), device=noisy.device))

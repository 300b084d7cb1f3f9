"""Training on DDN perturbations (Rony et al., CVPR 2019)."""

import torch
from torch import Tensor

from ima_dist.attacks.common import Network
from ima_dist.attacks.ddn import DDNResult, ddn
from ima_dist.methods.base import Attacked, Batch, Method


class DDN(Method):
    """The baseline "DDN", for L2: cross-entropy only on the nearest misclassified point that the attack finds.

    The perturbation is cut to a norm of ``eps_max``. As published: the loss; norms that change by 5 % per step, from
    1 in the input's units; a sample for which no point was found is trained on as it is. The number of steps is
    --attack.steps, and their size does not depend on --attack.step-scale. For CIFAR-10 the authors begin with 200
    epochs of standard training; the IMA paper mentions none, so there are none here.
    """

    def attack(self, model: Network, batch: Batch) -> Attacked:
        settings = {"steps": self.config.attack.steps, "max_norm": self.config.eps_max, "box": self.box}
        found: DDNResult = self.call(ddn, model, batch.x, batch.y, **settings)
        return Attacked(
            inputs=found.x,
            noisy_of=torch.arange(len(found.x), device=found.x.device),
            noisy_only=True,
            correct=found.correct,
            evaluations=found.evaluations,
        )

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        return self.cross_entropy(logits, batch.y)

"""TRADES: trade-off between accuracy and robustness (Zhang et al., ICML 2019)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ima_dist.attacks.common import Network, attack_mode, misclassified
from ima_dist.attacks.pgd import pgd
from ima_dist.methods.base import Attacked, Batch, Method

START = 1e-3


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of each sample from log-probabilities, (B, C), (B, C) -> (B,)."""
    masked = log_p.isneginf()  # a class that the network rules out: 0 · log 0 is 0
    return (log_p.exp() * (log_p.masked_fill(masked, 0.0) - log_q.masked_fill(masked, 0.0))).sum(1)


def most_divergent(model: Network, x: Tensor, y: Tensor, eps: Tensor | float, **options: Any) -> tuple[Tensor, Tensor]:
    """x' (B, ...), where PGD on the divergence from p(x) ends, and log p(x), (B, C). ``options``: of ``pgd``."""
    with torch.no_grad(), attack_mode(model):
        target = model(x).log_softmax(1)
    noisy = pgd(model, x, y, eps, loss=lambda logits, _: divergence(target, F.log_softmax(logits, 1)), **options)
    return noisy, target


class Trades(Method):
    """Cross-entropy of the clean sample x plus 1/λ · KL(p(x) ‖ p(x')), where x' is found by maximising the same
    divergence with PGD within ``eps_max`` of x (Zhang et al., algorithm 1).

    As published: the loss and its gradient, which flows through p(x) as well as p(x'); 1/λ = 6; p(x) held fixed
    inside PGD, which runs the network in evaluation mode. As in the IMA paper (section 3): the number and size of
    the steps are those of adv. Ours: the start is uniform within 0.001 in every coordinate, where the released code
    draws normal noise of that standard deviation, and is clipped to the data box before the first gradient, while
    the released code's start may leave the box; under L2, too, the steps are those of eq. 1, clipped to the ball and
    then to the box; and clean and perturbed samples go through the network together, so that batch norm sees both
    at once. With --autocast PGD runs the network in float32.
    """

    # Half precision rounds the start back to x, where the divergence has no gradient: PGD would stay there.
    attack_in_half = False

    def attack(self, model: Network, batch: Batch) -> Attacked:
        # At x itself the divergence has its minimum and no gradient.
        noisy, target = self.pgd(model, batch, batch.start(START, "linf"), attack=most_divergent)
        return Attacked(
            inputs=torch.cat([batch.x, noisy]),
            noisy_of=torch.arange(len(noisy), device=noisy.device),
            correct=~misclassified(target, batch.y),
            evaluations=(self.config.attack.steps + 1) * len(noisy),
        )

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        clean, noisy = logits.chunk(2)
        robust = divergence(clean.log_softmax(1), noisy.log_softmax(1))
        return torch.cat([self.cross_entropy(clean, batch.y), self.config.trades.inverse_lambda * robust])

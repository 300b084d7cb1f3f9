"""IAAT: instance adaptive adversarial training (Balaji, Goldstein and Hoffman 2019, arXiv:1910.08051)."""

import torch
from torch import Tensor

from ima_dist.attacks.common import Network, attack_mode, misclassified
from ima_dist.attacks.pgd import pgd
from ima_dist.margins.update import Proposals
from ima_dist.methods.base import Attacked, Batch, Method


class IAAT(Method):
    """The method "iaat": cross-entropy only at the last iterate of PGD, whose radius each sample has for itself.

    In the first epochs (--iaat.warmup) the radius is ε = ``eps_max``. Then each sample's E becomes

        (1 − β)·E + β·(E + γ if PGD of radius E + γ leaves it right, else E if PGD of radius E does, else E − γ)

    once in an epoch, before its training attack, without an upper bound; β is --iaat.smoothing, γ --delta-eps.

    As published: all of that. As in the released code: a sample that is wrong without noise has radius 0 in the
    warm-up, and 0 in place of the parenthesis afterwards; the parenthesis is at least 0; all E are 0 at first. Ours:
    the number and size of the steps are those of adv, where the released code's steps are 2E/N long and at least a
    quarter of ε; L2; the three attacks of a sample share one draw of noise, start inside the data box, and run the
    network in evaluation mode; and PGD of radius E is left out where its result is not needed.
    """

    has_margins = True

    @property
    def warmup(self) -> int:
        """The number of epochs in which every sample has the same radius."""
        given = self.config.iaat.warmup
        return max(1, self.config.epochs // 10) if given is None else given

    @property
    def first_margin(self) -> float:
        return 0.0

    @property
    def largest_margin(self) -> float:
        growing = max(self.config.epochs - self.warmup, 0)
        return self.config.eps_max + growing * self.config.iaat.smoothing * self.config.expansion

    def attack(self, model: Network, batch: Batch) -> Attacked:
        assert batch.margins is not None
        with torch.no_grad(), attack_mode(model):
            correct = ~misclassified(model(batch.x), batch.y)
        evaluations = len(correct)
        if batch.epoch < self.warmup:
            radius, crossed = self.config.eps_max * correct.to(batch.x.dtype), torch.zeros_like(correct)
        else:
            radius, crossed, spent = self._adapted(model, batch, correct)
            evaluations += spent
        noisy = self.pgd(model, batch, batch.start(radius, self.config.norm), eps=radius)
        return Attacked(
            inputs=noisy,
            noisy_of=torch.arange(len(noisy), device=noisy.device),
            noisy_only=True,
            correct=correct,
            proposals=Proposals(batch.indices, radius, correct, crossed),
            evaluations=evaluations + self.config.attack.steps * len(noisy),
        )

    def _adapted(self, model: Network, batch: Batch, correct: Tensor) -> tuple[Tensor, Tensor, int]:
        """Radii (B,), which samples PGD of radius E + γ breaks (B,) bool, and the forward passes spent."""
        assert batch.margins is not None
        before, gamma, beta = batch.margins, self.config.expansion, self.config.iaat.smoothing
        aim, crossed = torch.zeros_like(before), torch.zeros_like(correct)
        rows, higher = correct.nonzero()[:, 0], before + gamma
        wrong = self._broken(model, batch.take(rows), higher[rows])
        aim[rows], crossed[rows] = higher[rows], wrong
        # A sync, which saves whole attacks.
        doubtful = rows[wrong.nonzero()[:, 0]]
        wrong = self._broken(model, batch.take(doubtful), before[doubtful])
        aim[doubtful] = torch.where(wrong, before[doubtful] - gamma, before[doubtful]).clamp_min(0)
        spent = (self.config.attack.steps + 1) * (len(rows) + len(doubtful))
        return beta * aim + (1 - beta) * before, crossed, spent

    def _broken(self, model: Network, batch: Batch, radius: Tensor) -> Tensor:
        """Whether PGD within ``radius`` (B,) ends at a misclassified point, (B,) bool."""
        if not len(radius):
            return torch.zeros(0, dtype=torch.bool, device=radius.device)
        # Not by ``call``: these batches have another size every time.
        noisy = pgd(model, batch.x, batch.y, radius, start=batch.start(radius, self.config.norm), **self.pgd_options)
        with torch.no_grad(), attack_mode(model):
            return misclassified(model(noisy), batch.y)

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        return self.cross_entropy(logits, batch.y)

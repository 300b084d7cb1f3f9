"""Increasing-margin adversarial training (paper, Algorithms 1 to 3)."""

import torch
from torch import Tensor

from ima_dist.attacks.bpgd import bpgd
from ima_dist.attacks.common import Box, Network, cross_entropy
from ima_dist.config.schema import Config
from ima_dist.core import norms
from ima_dist.margins.update import Proposals, update_margins
from ima_dist.methods.base import Attacked, Batch, Method


class IMA(Method):
    """Algorithm 1 as ``attack`` and ``loss``, Algorithm 2 as ``estimate``.

    With ``margin_update="online"`` the boundary points of the training step also update the margins, and there is
    no pass after the epoch.

    Everything follows the paper; docs/settings.md has what it leaves open. The authors' released code updates margins
    when ``online`` does, but differs otherwise: it moves the margin of a sample that crossed half-way to the distance,
    leaves those of misclassified samples, clips at 0, bisects between the clean sample and the last iterate, attacks in
    training mode, and ends inside or in the middle of the bracket, depending on the data set.
    """

    def __init__(self, config: Config, box: Box) -> None:
        super().__init__(config, box)
        self.has_margins = self.on_boundary = True
        self.margin_pass = config.margin_update == "epoch"

    def _attacked(self, model: Network, batch: Batch, propose: bool) -> Attacked:
        assert batch.margins is not None
        config, settings = self.config, self.config.attack
        found = bpgd(
            model,
            batch.x,
            batch.y,
            batch.margins,
            norm=config.norm,
            steps=settings.steps,
            bisections=settings.bisections,
            step_scale=settings.step_scale,
            boundary_side=settings.boundary_side,
            start=batch.start(batch.margins, config.norm),
            box=self.box,
        )
        proposals = None
        if propose:
            margins = update_margins(
                batch.margins,
                norms.length(found.x - batch.x, config.norm),
                correct=found.correct,
                crossed=found.crossed,
                expansion=config.expansion,
                eps_max=config.eps_max,
            )
            proposals = Proposals(batch.indices, margins, found.correct, found.crossed)
        noisy_of = found.crossed.nonzero()[:, 0]
        return Attacked(
            inputs=torch.cat([batch.x, found.x[noisy_of]]),
            noisy_of=noisy_of,
            correct=found.correct,
            proposals=proposals,
            evaluations=found.evaluations,
        )

    def attack(self, model: Network, batch: Batch) -> Attacked:
        return self._attacked(model, batch, propose=not self.margin_pass)

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        """Algorithm 1, lines 5 to 8: weight 1 − β for all clean samples and β for noisy ones."""
        rows = cross_entropy(logits, torch.cat([batch.y, batch.y[attacked.noisy_of]]))
        clean = len(batch.y)
        return torch.cat([(1 - self.config.beta) * rows[:clean], self.config.beta * rows[clean:]])

    def estimate(self, model: Network, batch: Batch) -> Attacked:
        return self._attacked(model, batch, propose=True)

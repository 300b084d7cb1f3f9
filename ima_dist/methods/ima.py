"""Increasing-margin adversarial training (paper, Algorithms 1 to 3), and its later rules for margins."""

from collections.abc import Callable

import torch
from torch import Tensor

from ima_dist.attacks import shapes
from ima_dist.attacks.bpgd import BoundaryResult, bpgd
from ima_dist.attacks.bpgd_last import LastResult, bpgd_last, steepness
from ima_dist.attacks.common import Box, Network
from ima_dist.attacks.counting import counting_only
from ima_dist.config.schema import Config
from ima_dist.core import norms
from ima_dist.margins.update import Proposals, ame_margins, journal_margins, update_margins
from ima_dist.methods.base import Attacked, Batch, Method

# The smallest radius of the random start, except with the paper's rule (journal article, AME).
_SMALLEST_START = 1e-3


class IMA(Method):
    """Algorithm 1 as ``attack`` and ``loss``, Algorithm 2 as ``estimate``.

    With ``margin_update="online"`` the boundary points of the training step also update the margins, and there is
    no pass after the epoch.

    ``margin_rule`` "paper" follows the arXiv paper; docs/settings.md has what it leaves open. "journal" and "ame"
    follow the authors' articles of 2023 (docs/methods.md), in which margins come from the training step, and the attack
    runs to its end, starts in a smaller ball, and brackets the boundary by the clean sample and the last iterate. Their
    released code also attacks in training mode, which couples the samples of a batch where there is batch norm; here
    all rules attack in evaluation mode.
    """

    def __init__(self, config: Config, box: Box) -> None:
        super().__init__(config, box)
        self.has_margins = self.on_boundary = True
        self.margin_pass = config.margin_update == "epoch"

    @property
    def largest_margin(self) -> float | None:
        return self.config.eps_max if self.config.margins_bounded else None

    def _attacked(self, model: Network, batch: Batch, propose: bool) -> Attacked:
        assert batch.margins is not None
        config, settings, radius = self.config, self.config.attack, batch.margins
        search: Callable[..., BoundaryResult] = bpgd
        if config.margin_rule != "paper":
            search, radius = bpgd_last, (radius - config.expansion).clamp_min(_SMALLEST_START)
        found: BoundaryResult = self.call(
            search,
            model,
            batch.x,
            batch.y,
            batch.margins,
            norm=config.norm,
            steps=settings.steps,
            bisections=settings.bisections,
            step_scale=settings.step_scale,
            boundary_side=settings.boundary_side,
            start=batch.start(radius, config.norm),
            box=self.box,
        )
        proposals, spent = None, found.evaluations
        if propose:
            margins, more = self._new_margins(model, batch, found)
            proposals, spent = Proposals(batch.indices, margins, found.correct, found.crossed), spent + more
        noisy_of = found.crossed.nonzero()[:, 0]
        return Attacked(
            inputs=torch.cat([batch.x, found.x[noisy_of]]),
            noisy_of=noisy_of,
            correct=found.correct,
            proposals=proposals,
            evaluations=spent,
        )

    def _new_margins(self, model: Network, batch: Batch, found: BoundaryResult) -> tuple[Tensor, int | Tensor]:
        """The margins (B,) by the configured rule, and the forward passes that it takes, in samples."""
        config, margins = self.config, batch.margins
        assert margins is not None
        distance = norms.length(found.x - batch.x, config.norm)
        seen = {"correct": found.correct, "crossed": found.crossed}
        if not isinstance(found, LastResult):
            return update_margins(margins, distance, **seen, expansion=config.expansion, eps_max=config.eps_max), 0
        if config.margin_rule == "journal":
            return journal_margins(margins, distance, **seen, expansion=config.expansion, eps_max=config.eps_max), 0
        # Of the loss that is minimised, in which a noisy sample has the weight β / batch size.
        weight, growing = config.beta / config.batch_size, found.correct & ~found.crossed
        steep, spent = torch.zeros_like(margins), growing.sum()
        if shapes.keeps_shape(model, batch.x):
            with counting_only(model, growing):
                steep = torch.where(growing, weight * steepness(model, found.noisy, batch.y).to(steep), steep)
        else:
            rows = growing.nonzero()[:, 0]
            steep[rows] = weight * steepness(model, found.noisy[rows], batch.y[rows]).to(steep)
        more = spent if spent.is_cuda else int(spent)
        return ame_margins(margins, distance, steep, **seen, expansion=config.expansion), more

    def attack(self, model: Network, batch: Batch) -> Attacked:
        return self._attacked(model, batch, propose=not self.margin_pass)

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        """Algorithm 1, lines 5 to 8: weight 1 − β for all clean samples and β for noisy ones."""
        rows = self.cross_entropy(logits, torch.cat([batch.y, batch.y[attacked.noisy_of]]))
        clean = len(batch.y)
        return torch.cat([(1 - self.config.beta) * rows[:clean], self.config.beta * rows[clean:]])

    def estimate(self, model: Network, batch: Batch) -> Attacked:
        return self._attacked(model, batch, propose=True)

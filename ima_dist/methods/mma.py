"""MMA: max-margin adversarial training (Ding et al., ICLR 2020)."""

from typing import Any

import torch
from torch import Tensor

from ima_dist.attacks import shapes
from ima_dist.attacks.anpgd import NearestResult, anpgd
from ima_dist.attacks.common import Network, attack_mode, misclassified
from ima_dist.attacks.counting import counting_only
from ima_dist.margins.update import Proposals
from ima_dist.methods.base import Attacked, Batch, Method

CLEAN_WEIGHT = 1 / 3
STEP_SCALE = 2.5
# The search goes slightly beyond the hinge, to tell margins above it from margins below.
BEYOND = 1.05


class MMA(Method):
    """MMA training: correctly classified samples are trained on at the nearest point of the boundary.

    AN-PGD looks for that point, which counts if it is nearer than d_max = ``eps_max``; a misclassified sample is
    trained on as it is:

        L = 1/3 · CE(clean) + 2/3 · [CE(clean) if wrong, CE(nearest) if right and nearer than d_max, else 0]

    As in the released code: this loss, with cross-entropy at the boundary and the soft margin loss in PGD and
    bisection; the distance found is the radius of the sample's next PGD, 0 for a wrong sample, and raised to a
    floor; steps of 2.5·ε/N, whatever --attack.step-scale says; a search up to 1.05·d_max.
    As the IMA paper has it (section 3): N = 20 steps.
    Ours: the floor and first radius is --delta-eps, where the released code has its own constants for each data
    set; the arg max decides what is misclassified, and everything before the loss runs in evaluation mode, as in
    all methods here; the search goes along δ/‖δ‖, not δ/ε, and its points stay in the data box; its last
    evaluation counts, too; and clean and noisy samples go through the network together, so that batch norm sees
    both at once.

    Margins are updated in the training step, whatever --margin-update says.
    """

    has_margins = True

    @property
    def largest_margin(self) -> float:
        return BEYOND * self.config.eps_max

    def attack(self, model: Network, batch: Batch) -> Attacked:
        assert batch.margins is not None
        with torch.no_grad(), attack_mode(model):
            correct = ~misclassified(shapes.passed(model, batch.x), batch.y)
        if shapes.keeps_shape(model, batch.x):
            return self._all_searched(model, batch, correct)
        rows = correct.nonzero()[:, 0]
        distance, crossed = torch.zeros_like(batch.margins), torch.zeros_like(correct)
        evaluations = len(correct)
        inputs, noisy_of = batch.x, rows
        if len(rows):
            found = self._nearest(model, batch, rows)
            near = (found.distance < self.config.eps_max).nonzero()[:, 0]
            inputs, noisy_of = torch.cat([batch.x, found.x[near]]), rows[near]
            distance[rows], crossed[rows] = found.distance, found.crossed
            evaluations += found.evaluations
        return Attacked(
            inputs=inputs,
            noisy_of=noisy_of,
            correct=correct,
            proposals=Proposals(batch.indices, distance, correct, crossed),
            evaluations=evaluations,
        )

    def _all_searched(self, model: Network, batch: Batch, correct: Tensor) -> Attacked:
        """The result of ``attack``, where the search keeps the misclassified samples and forgets what it finds."""
        found = self._nearest(model, batch, counted=correct)
        noisy_of = (correct & (found.distance < self.config.eps_max)).nonzero()[:, 0]
        distance = torch.where(correct, found.distance, torch.zeros_like(found.distance))
        return Attacked(
            inputs=torch.cat([batch.x, found.x[noisy_of]]),
            noisy_of=noisy_of,
            correct=correct,
            proposals=Proposals(batch.indices, distance, correct, correct & found.crossed),
            evaluations=len(correct) + correct.sum() * (found.evaluations // len(correct)),
        )

    def _nearest(
        self, model: Network, batch: Batch, rows: Tensor | slice = slice(None), counted: Tensor | None = None
    ) -> NearestResult:
        """The nearest points of the boundary to the batch's samples ``rows``; ``counted``: as for ``_search``."""
        assert batch.margins is not None
        settings, norm = self.config.attack, self.config.norm
        eps = batch.margins.clamp_min(self.config.expansion)
        found: NearestResult = self.call(
            _search,
            model,
            batch.x[rows],
            batch.y[rows],
            eps[rows],
            counted=counted,
            norm=norm,
            max_eps=self.largest_margin,
            steps=settings.steps,
            bisections=settings.bisections,
            step_scale=STEP_SCALE,
            start=batch.start(eps, norm)[rows],
            box=self.box,
        )
        return found

    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        assert attacked.correct is not None
        rows = self.cross_entropy(logits, torch.cat([batch.y, batch.y[attacked.noisy_of]]))
        clean, noisy = rows[: len(batch.y)], rows[len(batch.y) :]
        return torch.cat([torch.where(attacked.correct, CLEAN_WEIGHT * clean, clean), (1 - CLEAN_WEIGHT) * noisy])


def _search(
    model: Network, x: Tensor, y: Tensor, eps: Tensor, *, counted: Tensor | None, **options: Any
) -> NearestResult:
    """``anpgd``, of whose passes only the samples ``counted`` (B,) bool count; None: all of them."""
    with counting_only(model, counted):
        return anpgd(model, x, y, eps, **options)

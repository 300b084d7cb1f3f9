"""The strictest reading of a PGD attack: a sample counts as broken if any step broke it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ima_dist.attacks import fixed, shapes
from ima_dist.attacks.common import (
    Box,
    Network,
    attack_mode,
    check_batch,
    logits_and_gradient,
    predicted,
    resolve_loss,
    towards,
)
from ima_dist.attacks.counting import Counted
from ima_dist.attacks.pgd import Objective, pgd_until_wrong
from ima_dist.core import norms

# Where batches keep their shape, passes between two looks at what is broken.
_LOOK_EVERY = 10


def worst(
    model: Network,
    x: Tensor,
    y: Tensor,
    levels: Sequence[float],
    *,
    norm: str,
    steps: int = 100,
    step_scale: float = 4.0,
    losses: Sequence[str] = ("ce", "margin"),
    rivals: int = 3,
    start: Callable[[float], Tensor] | None = None,
    box: Box = None,
) -> tuple[Tensor, Tensor]:
    """Predictions under the worst of all iterates, losses and smaller radii.

    PGD (eq. 1) runs for each radius in ascending order and each loss, then towards each sample's nearest rival
    classes (``Search``). The clean sample and every iterate count; a sample that is broken leaves the batch and
    stays broken at larger radii. docs/log.md compares ``worst`` with AutoAttack.

    Args:
        model, x, y, norm, steps, step_scale, box: as for ``pgd``.
        levels: radii in ascending order.
        losses: with two classes "ce" takes the same steps as "margin" and is left out.
        rivals: classes to aim at; with two classes there is none.
        start: gives ξ (B, ...) for a radius; by default drawn uniformly from the ball.

    Returns:
        predictions: (len(levels), B) int64, the wrong label found or the true one.
        evaluations: () int64, forward passes spent, in samples.

    Raises:
        ValueError: levels not ascending, an unknown norm or loss, or shapes that do not fit.
    """
    check_batch(x, y, 0.0, norm)
    if list(levels) != sorted(levels):
        raise ValueError(f"levels must ascend, got {list(levels)}")
    predictions = torch.empty(len(levels), len(x), dtype=torch.int64, device=x.device)
    with torch.no_grad(), attack_mode(model):
        search = Search(model, x, y, norm, losses, rivals)
        for number, eps in enumerate(levels):
            if eps > 0:
                xi = norms.random_start(x, eps, norm) if start is None else start(eps)
                search.attack(xi, norms.Balls(x, eps, norm, box), steps, step_scale)
            predictions[number] = search.predicted
    return predictions, torch.as_tensor(search.spent)


class Search:
    """The labels found so far, ``predicted`` (B,), and the forward passes spent on them, ``spent``."""

    def __init__(
        self,
        model: Network,
        x: Tensor,
        y: Tensor,
        norm: str,
        losses: Sequence[str] = ("ce", "margin"),
        rivals: int = 3,
        most: int = 0,
    ) -> None:
        """most: samples of a batch, if they are more than those of x."""
        logits = shapes.passed(model, x)
        self.model, self.x, self.y, self.norm = model, x, y, norm
        self.predicted, self.classes = predicted(logits), logits.shape[1]
        #: A number or, on a card, () int64.
        self.spent: int | Tensor = len(x)
        if self.classes == 2 and {"ce", "margin"} <= set(losses):
            # The gradient of ce is that of margin times a positive number, which can underflow to zero.
            losses = [name for name in losses if name != "ce"]
        self.losses = losses
        self.rivals = min(rivals, self.classes - 1) if self.classes > 2 else 0
        self.aims: Tensor | None = None
        self.most = max(most, len(x))

    def attack(self, xi: Tensor, balls: norms.Balls, steps: int, step_scale: float) -> None:
        """Attack the samples left from x + ξ with each loss, then towards their nearest rivals one by one.

        The rivals have a share of the steps each, from two opposite starts, because the margin loss pursues whichever
        class is strongest at the moment and can lead away from a nearer one. These steps shrink from half the radius
        towards zero, because steps of one size circle around a narrow region.
        """
        for name in self.losses:
            self._break([(xi, None)], balls, [step_scale / steps] * steps, name)
        if not self.rivals:
            return
        if self.aims is None:
            self.aims = self.nearest(self._left())
        share = max(1, round(steps / self.rivals))
        shrinking = [0.5 * (1 - i / share) for i in range(share)]
        self._break([(begin, aim) for begin in (xi, -xi) for aim in self.aims.unbind(1)], balls, shrinking)

    def _left(self) -> Tensor:
        """The samples (K,) int64 that are not broken."""
        return (self.predicted == self.y).nonzero()[:, 0]

    def _break(
        self,
        runs: Sequence[tuple[Tensor, Tensor | None]],
        balls: norms.Balls,
        sizes: Sequence[float],
        loss: str = "margin",
    ) -> None:
        """Attack the samples left, each time from x + ξ (B, ...), with ``loss`` or towards a rival (B,).

        As many ``runs`` go at once as fit into a batch. Every run has all samples that were left before the first, so
        that results and counts do not depend on how many go at once; of those that break a sample the first counts.
        sizes: of the steps, in units of the radius.
        """
        left = self._left()
        if not len(left):
            return
        at_once = max(1, self.most // len(left))
        for number in range(0, len(runs), at_once):
            some = runs[number : number + at_once]
            rows, xi = left.repeat(len(some)), torch.cat([begin[left] for begin, _ in some])
            aims = [aim[left] for _, aim in some if aim is not None]
            batch = _Batch(
                self.x[rows], self.y[rows], xi, balls.select(rows), sizes, loss, torch.cat(aims) if aims else None
            )
            attack = self._with_few_looks if shapes.keeps_shape(self.model, xi) else self._shrinking
            for label in attack(batch).split(len(left)):
                known = self.predicted[left]
                self.predicted[left] = torch.where(known == self.y[left], label, known)

    def _shrinking(self, batch: "_Batch") -> Tensor:
        """The labels (K,) found for a batch that broken samples leave after every pass, or the true ones."""
        labels, rows = batch.y.clone(), torch.arange(len(batch.y), device=batch.y.device)
        passes = pgd_until_wrong(
            self.model, batch.x, batch.y, rows, batch.xi, batch.balls, batch.sizes, batch.objective
        )
        for rows, gone, _, _, logits in passes:
            self.spent += len(rows)
            if len(gone):
                labels[rows[gone]] = predicted(logits[gone])
        return labels

    def _with_few_looks(self, batch: "_Batch") -> Tensor:
        """As ``_shrinking``, where broken samples leave the batch only every few passes."""
        network = self.model.network if isinstance(self.model, Counted) else self.model
        labels = batch.y.clone()
        rows, still = torch.arange(len(labels), device=batch.y.device), [*batch.sizes, None]
        now = batch.balls.clip(batch.x + batch.xi)
        while still and len(rows):
            some, still = still[:_LOOK_EVERY], still[_LOOK_EVERY:]
            kept, real = shapes.rounded_up(rows, self.most), len(rows)
            now = now[shapes.rounded_up(torch.arange(real, device=rows.device), self.most)]
            elements, found, gradients = fixed.passes(
                network, now, batch.y[kept], batch.balls.select(kept), some, batch.objective(kept)
            )
            found, y = found[:, :real], batch.y[rows]
            wrong = found != y
            ever, first = wrong.max(0)
            label = found.gather(0, first[None])[0].nan_to_num(-1).long()
            labels[rows] = torch.where(ever, label, y)
            taking_part = wrong.cumsum(0) <= wrong
            spent = taking_part.sum()
            self.spent += spent if spent.is_cuda else int(spent)
            if isinstance(self.model, Counted):
                gradients = [g[:real] for g in gradients]
                part = taking_part[: len(gradients)]
                self.model.tally.add_passes(gradients, part, found.flatten(), taking_part.flatten())
            if still:
                left = (~ever).nonzero()[:, 0]
                rows, now = rows[left], elements[-1][left]
        return labels

    def nearest(self, rows: Tensor) -> Tensor:
        """(B, rivals): of the nine rival classes with the largest logits, those nearest to the samples ``rows``.

        By the linearised distance at x (Moosavi-Dezfooli et al. 2016, DeepFool).
        """
        most = min(9, self.classes - 1)
        aims = torch.zeros(len(self.x), self.rivals, dtype=torch.int64, device=self.x.device)
        if not len(rows):  # some networks cannot take an empty batch
            return aims
        x, y = self.x[rows], self.y[rows]
        # A masked class, whose logit is −∞, still comes before the true one.
        others = self.model(x).clamp_min(torch.finfo(x.dtype).min).scatter(1, y[:, None], float("-inf"))
        candidates = others.topk(most, dim=1).indices
        distances = []
        for rival in candidates.unbind(1):
            logits, gradient = logits_and_gradient(self.model, x, y, towards(rival))
            size = gradient.flatten(1).norm(1 if self.norm == "linf" else 2, dim=1)  # the dual norm
            distances.append(-towards(rival)(logits, y) / size.clamp_min(torch.finfo(x.dtype).tiny))
        order = torch.stack(distances, 1).argsort(1)[:, : self.rivals]
        aims[rows] = candidates.gather(1, order)
        self.spent += (1 + most) * len(rows)
        return aims


@dataclass(frozen=True)
class _Batch:
    """Samples (K, ...), labels (K,), ξ (K, ...), balls, sizes of the steps, and a loss or rivals (K,)."""

    x: Tensor
    y: Tensor
    xi: Tensor
    balls: norms.Balls
    sizes: Sequence[float]
    loss: str
    aims: Tensor | None

    def objective(self, rows: Tensor) -> Objective:
        """The loss for the samples ``rows`` (R,) int64."""
        return resolve_loss(self.loss) if self.aims is None else towards(self.aims[rows])

"""PGD that stops at the decision boundary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ima_dist.attacks import fixed, shapes
from ima_dist.attacks.common import Box, Loss, Network, attack_mode, check_batch, misclassified, resolve_loss
from ima_dist.attacks.pgd import Objective, pgd_until_wrong
from ima_dist.core import norms


@dataclass(frozen=True)
class BoundaryResult:
    """Result of ``bpgd``.

    Attributes:
        x: (B, ...) the point on the boundary; the clean sample where ``crossed`` is False.
        crossed: (B,) bool, the sequence of Algorithm 3 contained a misclassified element.
        correct: (B,) bool, the clean sample is classified correctly.
        evaluations: forward passes spent, in samples; on a card it may be a tensor () int64, since reading it forces a
            sync. Samples that stay in the batch only to keep its shape do not count.
    """

    x: Tensor
    crossed: Tensor
    correct: Tensor
    evaluations: int | Tensor


def bpgd(
    model: Network,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    steps: int = 20,
    bisections: int = 10,
    step_scale: float = 4.0,
    loss: Loss = "ce",
    start: Tensor | None = None,
    box: Box = None,
    boundary_side: str = "midpoint",
) -> BoundaryResult:
    """Noisy samples on the decision boundary (paper, Algorithm 3, BPGD).

    The sequence is x, x₀ … x_steps of PGD. Its first misclassified element and the one before it are
    the bracket, which is narrowed by ``bisections`` halvings of the straight segment between them.

    A sample leaves the working batch as soon as it has crossed, and misclassified clean samples never
    enter it. For a network that treats samples independently the result is the same as that of the plain
    algorithm, with less work. Where launching operations takes more time than the arithmetic of a pass, all samples
    stay in the batch (``shapes``), with the same result.

    Args:
        model, x, y, eps, norm, steps, step_scale, loss, start, box: as for ``pgd``.
        bisections: N_binary.
        boundary_side: "midpoint" of the last bracket, or its end on the correct side ("inside") or on
            the wrong one ("outside").

    Returns:
        BoundaryResult.

    Raises:
        ValueError: an unknown norm, loss or side, or shapes that do not fit.
    """
    check_batch(x, y, eps, norm, start)
    check_side(boundary_side)
    objective = resolve_loss(loss)
    with torch.no_grad(), attack_mode(model):
        correct = ~misclassified(shapes.passed(model, x), y) if len(x) else torch.zeros_like(y, dtype=torch.bool)
        xi = norms.random_start(x, eps, norm) if start is None else start
        balls, sizes = norms.Balls(x, eps, norm, box), [step_scale / max(steps, 1)] * steps
        search = fixed.boundary if shapes.keeps_shape(model, x) else _shrinking
        result, crossed, spent = search(model, x, y, correct, xi, balls, sizes, objective, bisections, boundary_side)
    return BoundaryResult(result, crossed, correct, len(x) + (spent if x.is_cuda else int(spent)))


def _shrinking(
    model: Network,
    x: Tensor,
    y: Tensor,
    correct: Tensor,
    xi: Tensor,
    balls: norms.Balls,
    sizes: Sequence[float],
    objective: Objective,
    bisections: int,
    side: str,
) -> tuple[Tensor, Tensor, int]:
    """As ``fixed.boundary``, where samples leave the batch as soon as they have crossed."""
    spent, brackets = 0, []
    begun = correct.nonzero()[:, 0]
    passes = pgd_until_wrong(model, x, y, begun, xi[begun], balls, sizes, lambda rows: objective)
    for rows, gone, before, now, _ in passes:
        spent += len(rows)
        if len(gone):
            brackets.append((rows[gone], before[gone], now[gone]))
    result, crossed = x.clone(), torch.zeros_like(correct)
    if brackets:
        rows, inside, outside = (torch.cat(parts) for parts in zip(*brackets, strict=True))
        result[rows], crossed[rows] = narrowed(model, y[rows], inside, outside, bisections)[side], True
        spent += bisections * len(rows)
    return result, crossed, spent


def check_side(boundary_side: str) -> None:
    """Raise ValueError for a side that no bracket has."""
    if boundary_side not in ("midpoint", "inside", "outside"):
        raise ValueError(f"boundary_side must be 'midpoint', 'inside' or 'outside', not {boundary_side!r}")


def narrowed(model: Network, y: Tensor, inside: Tensor, outside: Tensor, bisections: int) -> dict[str, Tensor]:
    """Each side of the brackets from ``inside`` to ``outside`` (K, ...) after ``bisections`` halvings."""
    for _ in range(bisections):
        middle = (inside + outside) / 2
        wrong = norms.per_sample(misclassified(model(middle), y), middle)
        inside, outside = torch.where(wrong, inside, middle), torch.where(wrong, middle, outside)
    return {"midpoint": (inside + outside) / 2, "inside": inside, "outside": outside}

"""PGD with batches of one shape: nothing on the host depends on a value, so nothing waits for the card.

Every sample goes through every pass, and the first misclassified element of its sequence is looked up at the end. That
is more arithmetic, but fewer operations to launch. ``shapes`` decides where it is used.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ima_dist.attacks.common import Network, answered
from ima_dist.attacks.counting import Counted
from ima_dist.attacks.pgd import Objective, walk
from ima_dist.core import norms


def boundary(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the boundary (B, ...), which samples have crossed (B,), and evaluations () int64.

    Evaluations are those of samples that have not crossed yet: the rest is padding, which is not counted as met either.

    Args:
        correct: (B,) bool, the clean sample is classified correctly. xi: (B, ...) ξ.
        sizes: of the steps, in units of the radius. side: of the bracket. Others as for ``bpgd``.
    """
    network = model.network if isinstance(model, Counted) else model
    elements, found, gradients = passes(network, balls.clip(x + xi), y, balls, [*sizes, None], objective)
    wrong = found != y
    ever, first = wrong.max(0)
    crossed = correct & ever
    # Where a look is no wait, only the samples that have crossed are passed on.
    rows = slice(None) if x.is_cuda else crossed.nonzero()[:, 0]
    inside, outside = _neighbours(torch.stack([x, *elements]), first[rows], rows)
    ends, halved = narrowed(network, y[rows], inside, outside, bisections if len(inside) else 0, side)
    # A sample takes part until the first pass that finds it misclassified, and in the halvings if there is one.
    taking_part = (wrong.cumsum(0) <= wrong) & correct
    seen = torch.cat([taking_part.flatten(), *[crossed[rows]] * len(halved)])
    if isinstance(model, Counted):
        model.tally.add_passes(gradients, taking_part[:-1], torch.cat([found.flatten(), *halved]), seen)
    if x.is_cuda:
        return torch.where(norms.per_sample(crossed, x), ends, x), crossed, seen.sum()
    result = x.clone()
    result[rows] = ends
    return result, crossed, seen.sum()


def passes(
    network: Network, now: Tensor, y: Tensor, balls: norms.Balls, sizes: Sequence[float | None], objective: Objective
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Passes of PGD that begin at ``now`` (B, ...), one for each of the ``sizes`` of the steps after them.

    None stands for a last pass without a step. Returns the elements of the sequence, (B, ...) each; what the network
    ``answered`` in each pass, (P, B); and the gradients of the input as they were, (B, ...) each.
    """
    elements, answers, gradients = [now], [], []
    steps = [size for size in sizes if size is not None]
    for point, logits, gradient in walk(network, now, y, balls, steps, objective):
        elements.append(point)
        answers.append(logits)
        gradients.append(gradient)
    if sizes[-1] is None:
        answers.append(network(elements[-1]))
    return elements, answered(torch.stack(answers)), gradients


def _neighbours(sequence: Tensor, first: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
    """Elements number ``first`` and ``first + 1`` (K,) of the sequences (S, B, ...) of the samples ``rows``."""
    columns = torch.arange(len(first), device=first.device) if isinstance(rows, slice) else rows
    return sequence[first, columns], sequence[first + 1, columns]


def narrowed(
    network: Network, y: Tensor, inside: Tensor, outside: Tensor, halvings: int, side: str
) -> tuple[Tensor, list[Tensor]]:
    """One side of the brackets from ``inside`` to ``outside`` (B, ...) after ``halvings`` of them.

    Two halvings take one pass: the middle of the half that will be left is one of the two quarters, so these are
    passed through the network beside the middle. Also returns what the network ``answered`` at each of the
    ``halvings`` middles, (B,) each.
    """
    low, width = torch.zeros(len(y), dtype=inside.dtype, device=inside.device), 1.0
    quarters = torch.arange(1, 4, device=inside.device)[:, None]
    halved: list[Tensor] = []

    def at(share: Tensor) -> Tensor:
        """The points (K, B, ...) at the shares (K, B) of the way from inside to outside, exact at both ends."""
        return torch.lerp(inside, outside, share.view(*share.shape, *[1] * (inside.ndim - 1)))

    while len(halved) < halvings:
        at_once = quarters if halvings - len(halved) > 1 else quarters[1:2]
        points = at(torch.add(low, at_once, alpha=width / 4))
        found = answered(network(points.flatten(0, 1))).view(len(at_once), -1)
        middle = found[len(at_once) // 2]
        right = middle == y
        low, width = torch.add(low, right, alpha=width / 2), width / 2
        halved.append(middle)
        if len(at_once) > 1:
            middle = torch.where(right, found[2], found[0])
            low, width = torch.add(low, middle == y, alpha=width / 2), width / 2
            halved.append(middle)
    share = {"midpoint": low + width / 2, "inside": low, "outside": low + width}[side]
    return at(share), halved

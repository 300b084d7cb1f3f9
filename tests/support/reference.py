"""Plain implementations of the attacks: every sample through every pass, nothing shared with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Box = tuple[float, float] | None
Loss = str | Callable[[Tensor, Tensor], Tensor]


def column(values: Tensor | float, x: Tensor) -> Tensor:
    """A number or (B,) as a tensor of x's type that broadcasts over x (B, ...)."""
    return torch.as_tensor(values, dtype=x.dtype).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))


def project(adv: Tensor, x: Tensor, eps: Tensor | float, norm: str, box: Box) -> Tensor:
    radius = column(eps, x)
    if norm == "linf":
        adv = x + torch.minimum(torch.maximum(adv - x, -radius), radius)
    else:
        size = column((adv - x).flatten(1).pow(2).sum(1).sqrt(), x)
        adv = torch.where(size > radius, x + (adv - x) * radius / size, adv)
    return adv if box is None else adv.clamp(*box)


def direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    size = column(gradient.flatten(1).pow(2).sum(1).sqrt(), gradient)
    return torch.where(size > 0, gradient / size, torch.zeros_like(gradient))


def objective(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    if callable(loss):
        return loss(logits, y)
    if loss == "ce":
        return F.cross_entropy(logits, y, reduction="none")
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).max(1).values - logits[own]


def sequence(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    start: Tensor,
    steps: int = 20,
    step_scale: float = 4.0,
    loss: Loss = "ce",
    box: Box = None,
) -> list[Tensor]:
    """x, x₀, x₁ … x_steps of eq. 1, in evaluation mode of a network given in any mode."""
    was_training = model.training
    model.eval()
    eta = step_scale * column(eps, x) / steps
    elements = [x, project(x + start, x, eps, norm, box)]
    for _ in range(steps):
        adv = elements[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(loss, model(adv), y).sum(), adv)
        elements.append(project(adv.detach() + eta * direction(gradient, norm), x, eps, norm, box))
    model.train(was_training)
    return elements


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: Tensor | float, **options: Any) -> Tensor:
    return sequence(model, x, y, eps, **options)[-1]


def bpgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    bisections: int = 10,
    boundary_side: str = "midpoint",
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Algorithm 3: (x_n, crossed), the clean sample where nothing was crossed or it is wrong itself."""
    elements = sequence(model, x, y, eps, **options)
    was_training = model.training
    model.eval()
    out, crossed = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    with torch.no_grad():
        wrong = torch.stack([model(e).argmax(1) != y for e in elements], 1)
        inside, outside = x.clone(), x.clone()
        for b in range(len(x)):
            if not wrong[b, 0] and wrong[b].any():
                first = int(wrong[b].nonzero()[0])
                inside[b], outside[b] = elements[first - 1][b], elements[first][b]
                crossed[b] = True
        for _ in range(bisections):
            middle = (inside + outside) / 2
            miss = model(middle).argmax(1) != y
            for b in range(len(x)):
                (outside if miss[b] else inside)[b] = middle[b]
        point = {"midpoint": (inside + outside) / 2, "inside": inside, "outside": outside}[boundary_side]
        out[crossed] = point[crossed]
    model.train(was_training)
    return out, crossed


def bpgd_last(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    start: Tensor,
    box: tuple[float, float],
    steps: int,
    bisections: int = 10,
    boundary_side: str = "midpoint",
) -> tuple[Tensor, Tensor, Tensor]:
    """The rule of the journal article: (x_n, crossed, last iterate), halving from the clean sample to the last iterate.

    For a network that is the same in both modes.
    """
    elements = [(x + start).clamp(*box)]
    for _ in range(steps):
        at = elements[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
        further = elements[-1] + 4 * column(eps, x) / steps * direction(gradient, norm)
        elements.append(project(further, x, eps, norm, box))
    out, crossed = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    with torch.no_grad():
        right = model(x).argmax(1) == y
        for b in range(len(x)):
            passed = [bool(model(e[b : b + 1]).argmax(1) != y[b]) for e in elements]
            if not right[b] or not any(passed):
                continue
            crossed[b], inside, outside = True, x[b : b + 1], elements[-1][b : b + 1]
            for _ in range(bisections):
                middle = (inside + outside) / 2
                if model(middle).argmax(1) != y[b]:
                    outside = middle
                else:
                    inside = middle
            ends = {"midpoint": (inside + outside) / 2, "inside": inside, "outside": outside}
            out[b] = ends[boundary_side][0]
    return out, crossed, elements[-1]


def worst(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    levels: Sequence[float],
    *,
    norm: str,
    starts: Callable[[float], Tensor],
    steps: int,
    losses: Sequence[str] = ("ce", "margin"),
    box: Box = None,
) -> Tensor:
    """(levels, B) bool: every iterate of every loss at this and all smaller levels is right."""
    rows, unbroken = [], model(x).argmax(1) == y
    for eps in levels:
        if eps > 0:
            for loss in losses:
                start = starts(eps)
                for element in sequence(model, x, y, eps, norm=norm, start=start, steps=steps, loss=loss, box=box):
                    unbroken = unbroken & (model(element).argmax(1) == y)
        rows.append(unbroken)
    return torch.stack(rows)

"""``bpgd`` with one shape from the first step to the last: no waits for the card, so it can be a CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from ima_dist.attacks.bpgd import BoundaryResult
from ima_dist.attacks.common import Box, Loss, Network, attack_mode, logits_and_gradient, misclassified, resolve_loss
from ima_dist.core import norms


def bpgd_fixed(
    model: Network,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    start: Tensor,
    steps: int = 20,
    bisections: int = 10,
    step_scale: float = 4.0,
    loss: Loss = "ce",
    box: Box = None,
    boundary_side: str = "midpoint",
) -> BoundaryResult:
    """What ``attacks.bpgd`` finds, with every sample in every pass: more work, but nothing depends on the values.

    Arguments and result are those of ``bpgd``; ``start`` has to be given.
    """
    objective = resolve_loss(loss)
    with torch.no_grad(), attack_mode(model):
        correct = ~misclassified(model(x), y)
        balls = norms.Balls(x, eps, norm, box)
        before, now = x, balls.clip(x + start)
        inside = outside = x
        left, crossed = correct, torch.zeros_like(correct)
        for i in range(steps + 1):
            logits, gradient = logits_and_gradient(model, now, y, objective) if i < steps else (model(now), now)
            hit = left & misclassified(logits, y)
            here = norms.per_sample(hit, x)
            inside, outside = torch.where(here, before, inside), torch.where(here, now, outside)
            crossed, left = crossed | hit, left & ~hit
            if i < steps:
                before, now = now, balls.step(now, gradient, step_scale / steps)
        for _ in range(bisections):
            middle = (inside + outside) / 2
            wrong = norms.per_sample(misclassified(model(middle), y), x)
            inside, outside = torch.where(wrong, inside, middle), torch.where(wrong, middle, outside)
        end = {"midpoint": (inside + outside) / 2, "inside": inside, "outside": outside}[boundary_side]
        result = torch.where(norms.per_sample(crossed, x), end, x)
    return BoundaryResult(result, crossed, correct, (2 + steps + bisections) * len(x))

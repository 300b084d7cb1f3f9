"""Whether attacks have a gradient to follow: a look at the clean samples, and at the points where attacks start."""

from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import attack_mode, cross_entropy, logits_and_raw_gradient, predicted
from ima_dist.config.schema import Config
from ima_dist.core import distributed, noise, norms
from ima_dist.data.types import Resident

# Under L2 advertorch divides a gradient by its norm, or by 1e-6 if that is larger: its steps on a gradient of this norm
# have a hundredth of their length.
_LOST = 1e-8


def gradient_counts(
    network: nn.Module, test: Resident, samples: Tensor, config: Config, batch_size: int
) -> dict[str, Any]:
    """How many of the ``samples`` (M,), indices of ``test``, an attack by gradient can do nothing with. Collective.

    Two passes for each sample, at x and at its random start for the largest noise level. Nothing is read from the
    device before the end.

    Returns:
        samples: M. zero: those whose gradient is zero in all entries at both points, or under L2 so small, or so
        large, that advertorch's PGD takes no step. not_finite: those with NaN or infinity in a gradient, and
        bad_logits: in the logits, at one of them.
    """
    counts = torch.zeros(3, dtype=torch.int64, device=test.y.device)
    mine = distributed.share_of_batch(samples)
    with attack_mode(network):
        for part in mine.split(batch_size) if len(mine) else ():
            indices = part.to(test.y.device)
            x, y = test.batch(indices)
            keys = noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, indices)
            eps = max(config.eval.noise)
            start = norms.clip(x + noise.start(keys, x, eps, config.norm), x, eps, config.norm, test.box)
            zero, not_finite, bad_logits = map(
                torch.stack, zip(*(_look(network, p, y, config.norm) for p in (x, start)), strict=True)
            )
            counts += torch.stack([zero.all(0).sum(), not_finite.any(0).sum(), bad_logits.any(0).sum()])
    found = distributed.all_reduce(counts).tolist()
    return {"samples": len(samples), **dict(zip(("zero", "not_finite", "bad_logits"), found, strict=True))}


def _look(network: nn.Module, x: Tensor, y: Tensor, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Which gradients (B,) are zero, which are not finite, and which logits name no class."""
    logits, gradient = logits_and_raw_gradient(network, x, y, cross_entropy)
    gradient = gradient.flatten(1)
    zero = (gradient == 0).all(1)
    if norm == "l2":
        size = gradient.square().sum(1).sqrt()  # overflows where advertorch's does
        zero = (size <= _LOST) | (size.isinf() & gradient.isfinite().all(1))
    return zero, ~gradient.isfinite().all(1), predicted(logits) < 0

"""Simultaneous perturbation stochastic approximation: an attack that needs no gradients."""

import torch
from torch import Tensor

from ima_dist.attacks.common import Box, Network, attack_mode, check_batch, finite, margin_loss, misclassified
from ima_dist.core import noise, norms

# Forward passes of this many images or values at once keep the device busy and the memory bounded.
_IMAGES_AT_ONCE = 4096
_VALUES_AT_ONCE = 1 << 22


def spsa(
    model: Network,
    x: Tensor,
    y: Tensor,
    eps: float,
    keys: Tensor,
    *,
    norm: str,
    samples: int = 2018,
    iterations: int = 100,
    delta: float = 0.01,
    lr: float = 0.01,
    box: Box = None,
    images_at_once: int | None = None,
) -> Tensor:
    """Adversarial samples found from logits alone (Uesato et al. 2018, Algorithm 1).

    Each iteration estimates the gradient of the margin loss from ``samples`` random sign vectors v, as the
    mean of v·(J(x+δv) − J(x−δv))/2δ, lets Adam take a step with it, and projects into the ball and the box.
    A sample leaves the batch as soon as it is misclassified. Under L2, which the publication does not treat,
    Adam's second moment is the mean over a sample's components, so that steps keep the direction of steepest
    ascent. Defaults are the paper's (appendix D.1).

    Args:
        model, x, y, norm, box: as for ``pgd``. eps: radius, the same for all samples.
        keys: (B,) int64; the sign vectors of a sample depend only on its key and the iteration.
        samples: sign vectors per iteration, each of which costs two forward passes.
        delta: length of a probe in each component. lr: learning rate of Adam, in the input's units.
        images_at_once: upper bound, at least 2, on the batch that the model sees (default: 4096, fewer large ones).

    Returns:
        (B, ...), within eps of x and inside the box.

    Raises:
        ValueError: an unknown norm or shapes that do not fit.
    """
    check_batch(x, y, eps, norm)
    out = x.clone()
    with torch.no_grad(), attack_mode(model):
        rows = (~misclassified(model(x), y)).nonzero()[:, 0]
        now, balls = x[rows], norms.Balls(x, eps, norm, box).select(rows)
        first, second = torch.zeros_like(now), torch.zeros_like(now)
        for i in range(1, iterations + 1):
            if not len(rows):
                break
            signs = noise.derived(keys[rows], i)
            gradient = _estimate(model, now, y[rows], signs, samples, delta, images_at_once)
            # Adam (Kingma and Ba 2015) with its usual constants, written out because samples leave the batch.
            first = 0.9 * first + 0.1 * gradient
            squares = gradient.square()
            if norm == "l2":
                squares = norms.per_sample(squares.flatten(1).mean(1), gradient)
            second = 0.999 * second + 0.001 * squares
            step = (first / (1 - 0.9**i)) / ((second / (1 - 0.999**i)).sqrt() + 1e-8)
            now = balls.clip(now + lr * step)
            out[rows] = now
            left = (~misclassified(model(now), y[rows])).nonzero()[:, 0]
            rows, now, balls = rows[left], now[left], balls.select(left)
            first, second = first[left], second[left]
    return out


def _estimate(
    model: Network, x: Tensor, y: Tensor, keys: Tensor, samples: int, delta: float, images_at_once: int | None
) -> Tensor:
    """Gradient (B, ...) of the margin loss at x, estimated; nothing depends on ``images_at_once``."""
    if images_at_once is None:
        images_at_once = min(_IMAGES_AT_ONCE, _VALUES_AT_ONCE // x[0].numel())
    most = max(1, images_at_once // 2)
    if len(x) > most:
        pieces = zip(x.split(most), y.split(most), keys.split(most), strict=True)
        return torch.cat([_estimate(model, *piece, samples, delta, images_at_once) for piece in pieces])
    gradient = torch.zeros_like(x)
    each = max(1, images_at_once // (2 * len(x)))
    for begin in range(0, samples, each):
        count = min(each, samples - begin)
        v = noise.signs(keys, (count, *x.shape[1:]), begin, x.dtype)
        probes = torch.stack([x[:, None] + delta * v, x[:, None] - delta * v])
        labels = y[None, :, None].expand(probes.shape[:3]).reshape(-1)
        values = margin_loss(model(probes.flatten(0, 2)), labels).view(probes.shape[:3])
        # A probe outside the ball may be NaN where no point inside is.
        slope = finite((values[0] - values[1]) / (2 * delta))
        gradient += (slope.view(*slope.shape, *[1] * (x.ndim - 1)) * v).sum(1)
    return gradient / samples

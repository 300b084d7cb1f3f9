"""The two norms, as the handful of operations that attacks need. All act sample by sample.

Shapes: samples and perturbations (B, ...); radii ``eps`` a number or (B,); lengths (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample(values: Tensor | float, like: Tensor) -> Tensor | float:
    """``values`` (B,) shaped so that it broadcasts over ``like`` (B, ...); a number stays a number."""
    if not isinstance(values, Tensor) or values.ndim == 0:
        return values
    return values.view(-1, *([1] * (like.ndim - 1)))


def length(delta: Tensor, norm: str) -> Tensor:
    """‖delta‖_p of every sample: (B, ...) -> (B,)."""
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def ascent(gradient: Tensor, norm: str) -> Tensor:
    """h of eq. 1: the sign for L∞, the unit vector for L2. A zero gradient stays zero."""
    if norm == "linf":
        return gradient.sign()
    # In float32 the squares of a saturated softmax's gradient underflow; scaling first keeps the direction.
    peak = gradient.flatten(1).abs().amax(1)
    scaled = gradient / per_sample(torch.where(peak > 0, peak, 1.0), gradient)
    size = scaled.flatten(1).norm(dim=1)
    return scaled / per_sample(torch.where(size > 0, size, 1.0), gradient)


def clip(x_adv: Tensor, x: Tensor, eps: Tensor | float, norm: str, box: tuple[float, float] | None) -> Tensor:
    """clip of eq. 1: into the ε-ball around x, then into the data box (None: no box)."""
    radius = per_sample(eps, x)
    if norm == "linf":
        x_adv = torch.minimum(torch.maximum(x_adv, x - radius), x + radius)
    else:
        delta = x_adv - x
        size = delta.flatten(1).norm(dim=1)
        # Clamped to 1 so that points inside the ball are left bit for bit as they are.
        shrink = torch.clamp(eps / torch.clamp(size, min=torch.finfo(x.dtype).tiny), max=1.0)
        x_adv = torch.where(per_sample(shrink < 1, x), x + delta * per_sample(shrink, x), x_adv)
    return x_adv if box is None else x_adv.clamp(*box)


def to_ball(uniforms: Tensor, normals: Tensor | None, eps: Tensor | float, norm: str) -> Tensor:
    """ξ uniform in the ε-ball.

    L∞: from ``uniforms`` (B, ...) in [0, 1). L2: direction from ``normals`` (B, ...), radius from the
    first of the ``uniforms`` of each sample, so that the volume is covered evenly.
    """
    if norm == "linf":
        return (2 * uniforms - 1) * per_sample(eps, uniforms)
    assert normals is not None
    dimension = normals[0].numel()
    radius = uniforms.flatten(1)[:, 0].pow(1 / dimension)
    return ascent(normals, "l2") * per_sample(radius * eps, normals)


def random_start(x: Tensor, eps: Tensor | float, norm: str) -> Tensor:
    """ξ uniform in the ε-ball, drawn from torch's global generator."""
    return to_ball(torch.rand_like(x), torch.randn_like(x) if norm == "l2" else None, eps, norm)

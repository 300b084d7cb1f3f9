"""The two norms, as the operations that attacks need. All act sample by sample.

Shapes: samples and perturbations (B, ...); radii ``eps`` a number or (B,); lengths (B,).
"""

import math
from typing import Self, overload

import torch
from torch import Tensor


@overload
def per_sample(values: Tensor, like: Tensor) -> Tensor: ...
@overload
def per_sample(values: Tensor | float, like: Tensor) -> Tensor | float: ...
def per_sample(values: Tensor | float, like: Tensor) -> Tensor | float:
    """``values`` (B,) shaped so that it broadcasts over ``like`` (B, ...); a number stays a number."""
    if not isinstance(values, Tensor) or values.ndim == 0:
        return values
    return values.view(-1, *([1] * (like.ndim - 1)))


def length(delta: Tensor, norm: str) -> Tensor:
    """‖delta‖_p of every sample: (B, ...) -> (B,)."""
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)


def ascent(gradient: Tensor, norm: str) -> Tensor:
    """h of eq. 1: the sign for L∞, the unit vector for L2. A zero gradient stays zero."""
    if norm == "linf":
        return gradient.sign()
    # In float32 the squares of a saturated softmax's gradient underflow; scaling first preserves the direction.
    tiny = torch.finfo(gradient.dtype).tiny
    flat = gradient.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    flat = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(tiny)
    return flat.view_as(gradient)


class Balls:
    """The ε-balls around a batch of samples, cut by the data box: where eq. 1 lives.

    Holds what stays the same from step to step, so that a step needs few kernels: with small networks
    they, and not the network, would take most of the time.
    """

    def __init__(self, x: Tensor, eps: Tensor | float, norm: str, box: tuple[float, float] | None) -> None:
        """x (B, ...); eps a number or (B,), converted to x's type and device; box (low, high) or None."""
        self.norm, self.box = norm, box
        self._radius = per_sample(
            eps.to(x) if isinstance(eps, Tensor) else torch.full((), eps, dtype=x.dtype, device=x.device), x
        )
        self._eta: tuple[float, Tensor] = (1.0, self._radius)
        # The fields with one row per sample: the bounds for L∞, the centre for L2.
        if norm == "linf":
            self._bounds: tuple[Tensor, ...] = (x - self._radius, x + self._radius)
            if box is not None:
                self._bounds = tuple(bound.clamp(*box) for bound in self._bounds)
        else:
            self._bounds = (x,)

    def select(self, rows: Tensor) -> Self:
        """The balls of the samples ``rows`` (K,) int64."""
        chosen = object.__new__(type(self))
        chosen.norm, chosen.box = self.norm, self.box
        chosen._radius = self._radius.index_select(0, rows) if self._radius.ndim else self._radius
        chosen._eta = (1.0, chosen._radius)
        chosen._bounds = tuple(bound.index_select(0, rows) for bound in self._bounds)
        return chosen

    def clip(self, x_adv: Tensor) -> Tensor:
        """clip of eq. 1, (B, ...) -> (B, ...): into the ball, then into the box."""
        if self.norm == "linf":
            return torch.clamp(x_adv, *self._bounds)
        (x,) = self._bounds
        delta = x_adv - x
        size = per_sample(length(delta, "l2"), x)
        # Zero inside the ball, so that points there are left bit for bit as they are.
        excess = (1 - self._radius / size.clamp_min(torch.finfo(x.dtype).tiny)).clamp_min(0)
        x_adv = x_adv - delta * excess
        return x_adv if self.box is None else x_adv.clamp(*self.box)

    def prepare(self, scale: float) -> None:
        """Compute η = scale·ε for the steps that follow."""
        if scale != self._eta[0]:
            self._eta = scale, scale * self._radius

    def step(self, x_adv: Tensor, gradient: Tensor, scale: float) -> Tensor:
        """One step of eq. 1, (B, ...) -> (B, ...), with η = scale·ε."""
        self.prepare(scale)
        return self.clip(x_adv + self._eta[1] * ascent(gradient, self.norm))


def clip(x_adv: Tensor, x: Tensor, eps: Tensor | float, norm: str, box: tuple[float, float] | None) -> Tensor:
    """clip of eq. 1: into the ε-ball around x, then into the data box (None: no box)."""
    return Balls(x, eps, norm, box).clip(x_adv)


def outside(x_adv: Tensor, x: Tensor, eps: float, norm: str, box: tuple[float, float] | None) -> Tensor:
    """Which samples x_adv (B, ...) leave the ε-ball around x or the box by more than rounding in float32, (B,) bool.

    Those with NaN do.
    """
    # Of each sample: its result must not depend on the others in its batch.
    rounding = 1e-6 * length(x, "linf")
    values = x[:1].numel()
    inside = length(x_adv - x, norm) <= eps * (1 + 1e-4) + rounding * (1.0 if norm == "linf" else values**0.5)
    if box is not None:
        flat = x_adv.flatten(1)
        slack = 1e-6 * max(map(abs, box))
        inside &= (flat >= box[0] - slack).all(1) & (flat <= box[1] + slack).all(1)
    return ~inside


def to_ball(uniforms: Tensor, normals: Tensor | None, eps: Tensor | float, norm: str) -> Tensor:
    """ξ uniform in the ε-ball.

    L∞: from ``uniforms`` (B, ...) in [0, 1). L2: direction from ``normals`` (B, ...), radius from the
    first of the ``uniforms`` of each sample, so that the volume is covered evenly.
    """
    if isinstance(eps, Tensor):
        eps = eps.to(uniforms)
    if norm == "linf":
        return (2 * uniforms - 1) * per_sample(eps, uniforms)
    assert normals is not None
    dimension = math.prod(normals.shape[1:])
    radius = uniforms.flatten(1)[:, 0].pow(1 / dimension)
    return ascent(normals, "l2") * per_sample(radius * eps, normals)


def random_start(x: Tensor, eps: Tensor | float, norm: str) -> Tensor:
    """ξ uniform in the ε-ball, drawn from torch's global generator."""
    return to_ball(torch.rand_like(x), torch.randn_like(x) if norm == "l2" else None, eps, norm)

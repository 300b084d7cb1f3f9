"""A network with an adversarial sample planted in it (Zimmermann et al., NeurIPS 2022).

The network's last linear layer is replaced by one of two classes, which tells a single point at distance ε of a sample
from a thousand points nearer to it. So a misclassified point within ε exists, for this sample and these features, and
an attack on them that finds none is too weak for this network, whatever accuracy it reports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ima_dist.attacks.common import Box
from ima_dist.core import noise, norms

# Points inside the ball, the sample being the last of them, and how far from its surface they stay, in radii.
_INSIDE, _GAP = 1000, 0.05
# Points of the random attack that the planted sample is compared with.
_DRAWS = 200
# Points that are in memory together.
_AT_ONCE = 250
# The planted point may be that much nearer than ε where the box leaves no room, in radii.
_TOO_NEAR = 0.01
_RIDGE = 1e-6


@contextlib.contextmanager
def features_of(network: nn.Module, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function that gives the network's features (B, d) of inputs (B, ...), inside the block.

    They are the input of the linear layer that is passed last, as a pass of ``x`` (B, ...) shows; the logits, if there
    is no such layer or it does not take one vector per sample.
    """
    passed: list[nn.Module] = []
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, given: passed.append(module))
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not passed:
        yield network
        return
    handle = passed[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))

    def features(given: Tensor) -> Tensor:
        seen.clear()
        logits: Tensor = network(given)
        found = seen[-1] if seen else logits
        seen.clear()
        return found if found.ndim == 2 and len(found) == len(given) else logits

    try:
        yield features
    finally:
        handle.remove()


class Binarized(nn.Module):
    """The features, and a linear layer on them: logits (B, 2), class 1 where weight·features + bias is positive."""

    weight: Tensor

    def __init__(self, network: nn.Module, features: Callable[[Tensor], Tensor], weight: Tensor, bias: float) -> None:
        super().__init__()
        #: Holds the features' layers, so that attacks can set their mode.
        self.network = network
        self.features, self.bias = features, bias
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        score = self.features(x) @ self.weight + self.bias
        return torch.stack([-score, score], 1) / 2


def planted(
    network: nn.Module,
    features: Callable[[Tensor], Tensor],
    x: Tensor,
    index: int,
    eps: float,
    *,
    norm: str,
    box: Box,
    seed: int,
    at_once: int,
) -> tuple[Binarized, bool] | None:
    """The binarized network for the sample x (1, ...), and whether random noise within ε finds its class 1.

    None if no point could be planted: the features do not tell it from the others, or the box leaves no room.

    Args:
        network: in evaluation mode; nothing is asked for gradients.
        index: of the sample in the test set, which with ``seed`` keys its points.
        at_once: the most points that are passed through the network together.
    """
    at_once = min(at_once, _AT_ONCE)
    keys = noise.sample_keys(seed, index, noise.Phase.SELF_TEST, torch.arange(_INSIDE + _DRAWS, device=x.device))
    near, far, random = keys[1:_INSIDE].split(at_once), keys[:1], keys[_INSIDE:].split(at_once)
    point = _on_surface(x, noise.start(far, x, 1.0, norm), eps, norm, box)
    if float(norms.length(point - x, norm)) < (1 - _TOO_NEAR) * eps:
        return None
    inside = (features(_noisy(x, part, (1 - _GAP) * eps, norm, box)) for part in near)
    found = torch.cat([*inside, features(torch.cat([x, point]))])
    fitted = _readout(found.double().cpu().numpy())
    if fitted is None:
        return None
    weight, bias = fitted
    binarized = Binarized(network, features, torch.from_numpy(weight).to(found), bias)
    by_chance = any(bool((binarized(_noisy(x, part, eps, norm, box))[:, 1] > 0).any()) for part in random)
    # The readout must also tell them apart in the network's own precision.
    ends = binarized(torch.cat([x, point]))[:, 1]
    return (binarized, by_chance) if ends[0] < 0 < ends[1] else None


def _noisy(x: Tensor, keys: Tensor, eps: float, norm: str, box: Box) -> Tensor:
    """Points (B, ...) uniform in the ball around x (1, ...), one for each of the keys (B,), put into the box."""
    many = x.expand(len(keys), *[-1] * (x.ndim - 1))
    return norms.clip(many + noise.start(keys, many, eps, norm), many, eps, norm, box)


def _on_surface(x: Tensor, xi: Tensor, eps: float, norm: str, box: Box) -> Tensor:
    """x + s·ξ (1, ...), put into the box, at distance ε of x, or as near to that as the box allows.

    The distance grows with s, so it is found by bisection.
    """

    def moved(s: float) -> Tensor:
        return x + s * xi if box is None else (x + s * xi).clamp(*box)

    low, high = 0.0, 1e3 * eps
    for _ in range(60):
        middle = (low + high) / 2
        inside = float(norms.length(moved(middle) - x, norm)) <= eps
        low, high = (middle, high) if inside else (low, middle)
    return moved(low)


def _readout(features: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Weight (d,) and bias of a linear function of the features (n, d) that is positive only for the last row.

    Logistic regression, after which the boundary is put half-way between the last row and the next one, and values
    are scaled to a range of 1. None if it does not tell them apart.
    """
    from scipy.optimize import minimize  # SciPy takes a second to import

    if not np.isfinite(features).all():
        return None
    mean, spread = features.mean(0), features.std(0)
    spread[spread == 0] = 1.0
    rows = (features - mean) / spread
    sign = np.r_[-np.ones(len(rows) - 1), 1.0]
    # Both classes weigh the same.
    share = np.r_[np.full(len(rows) - 1, 0.5 / (len(rows) - 1)), 0.5]

    def loss(given: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = given[:-1], given[-1]
        lead = sign * (rows @ weight + bias)
        slope = -share * sign / (1 + np.exp(np.minimum(lead, 500.0)))
        value = share @ np.logaddexp(0, -lead) + _RIDGE * (weight @ weight)
        return float(value), np.r_[rows.T @ slope + 2 * _RIDGE * weight, slope.sum()]

    fitted = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    weight = fitted[:-1] / spread
    values = features @ weight
    nearest, point, lowest = values[:-1].max(), values[-1], values.min()
    if point <= nearest:
        return None
    scale = point - lowest
    return weight / scale, float(-(point + nearest) / 2 / scale)

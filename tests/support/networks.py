"""Networks whose distances to the boundary are known."""

from __future__ import annotations

import torch
from torch import nn


class Linear(nn.Module):
    """Logits of a linear classifier for samples of any shape, with other shapes refused."""

    def __init__(self, weights: torch.Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weights, self.shape = nn.Parameter(weights), shape

    def forward(self, x):
        assert x.shape[1:] == self.shape
        return (x - 0.5).flatten(1) @ self.weights.T


def linear(classes: int, shape=(1, 4, 4), samples=40):
    """Classifier, samples inside [0.3, 0.7], labels, and per norm the distance of each to the boundary."""
    torch.manual_seed(classes)
    network = Linear(torch.randn(classes, torch.Size(shape).numel()), shape)
    x = 0.3 + 0.4 * torch.rand(samples, *shape)
    y = network(x).argmax(1).detach()
    logits = network(x).detach()
    rival = network.weights[None] - network.weights[y][:, None]
    gap = logits.gather(1, y[:, None]) - logits
    distances = {}
    for norm, dual in (("linf", 1), ("l2", 2)):
        each = gap / rival.norm(dual, dim=2).clamp_min(1e-9)
        distances[norm] = each.scatter(1, y[:, None], torch.inf).amin(1).detach()
    return network, x, y, distances

"""The decision boundary of a network on points in the plane (Fig. 6)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ima_dist.attacks.common import attack_mode


def boundary_grid(
    network: nn.Module, x: Tensor, y: Tensor, *, side: int = 300, points: int = 4000
) -> dict[str, np.ndarray]:
    """Probability of class 1 on a grid around the points x (N, 2) with labels y (N,).

    Returns arrays grid_x (side,), grid_y (side,), probability (side, side) indexed [y, x], and the first
    ``points`` samples as points (K, 2) and labels (K,).
    """
    low, high = x.amin(0), x.amax(0)
    pad = 0.15 * (high - low)
    axes = [torch.linspace(float(a), float(b), side) for a, b in zip(low - pad, high + pad, strict=True)]
    grid_y, grid_x = torch.meshgrid(axes[1], axes[0], indexing="ij")
    grid = torch.stack([grid_x, grid_y], -1).view(-1, 2).to(x.device, x.dtype)
    with torch.no_grad(), attack_mode(network):
        probability = torch.cat([network(part).softmax(1)[:, 1] for part in grid.split(1 << 14)])
    return {
        "grid_x": axes[0].numpy(),
        "grid_y": axes[1].numpy(),
        "probability": probability.view(side, side).cpu().numpy(),
        "points": x[:points].cpu().numpy(),
        "labels": y[:points].cpu().numpy(),
    }

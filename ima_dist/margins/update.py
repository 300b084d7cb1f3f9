"""Algorithm 2: how one margin changes, and the proposals that carry changes to the store."""

from typing import NamedTuple, Self

import torch
from torch import Tensor


def update_margins(
    margins: Tensor, distance: Tensor, *, correct: Tensor, crossed: Tensor, expansion: float, eps_max: float
) -> Tensor:
    """Algorithm 2, lines 3 to 14, for a batch.

    Args:
        margins: E(x), (B,).
        distance: ‖x − x_n‖_p, (B,); read only where ``crossed``.
        correct, crossed: (B,) bool, from ``bpgd`` with radius E(x).
        expansion: Δε.
        eps_max: largest allowed margin.

    Returns:
        (B,): Δε where misclassified, the distance where crossed, E + Δε elsewhere; within [Δε, ε_max].
    """
    updated = torch.where(crossed, distance, margins + expansion)
    updated = torch.where(correct, updated, torch.full_like(updated, expansion))
    return updated.clamp(expansion, eps_max)


class Proposals(NamedTuple):
    """New margins that await ``reduce``; all (K,), for K distinct global indices."""

    indices: Tensor
    values: Tensor
    correct: Tensor
    crossed: Tensor

    @classmethod
    def none(cls, device: torch.device, dtype: torch.dtype) -> Self:
        empty = torch.zeros(0, dtype=torch.bool, device=device)
        return cls(empty.long(), empty.to(dtype), empty, empty)

    def take(self, rows: Tensor) -> Self:
        """Those at ``rows``: indices or a mask."""
        return type(self)(*(column[rows] for column in self))


def joined(parts: list[Proposals]) -> Proposals:
    return Proposals(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

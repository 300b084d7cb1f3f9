"""How one margin changes, by Algorithm 2 or a later rule, and the proposals that carry changes to the store."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

# By this factor the growth of a margin shrinks for each Δε that it has grown (AME).
AME_DECAY = 0.9


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


def journal_margins(
    margins: Tensor, distance: Tensor, *, correct: Tensor, crossed: Tensor, expansion: float, eps_max: float
) -> Tensor:
    """The rule of IMA's journal article, for a batch (Ma and Liang, Comput. Methods Programs Biomed. 240, 2023).

    Args:
        As for ``update_margins``; correct, crossed, distance from ``bpgd_last``.

    Returns:
        (B,): E where misclassified, half-way from E to the distance where crossed, E + Δε elsewhere; within [0, ε_max].
    """
    moved = torch.where(crossed, (margins + distance) / 2, margins + expansion)
    return torch.where(correct, moved, margins).clamp(0, eps_max)


def ame_margins(
    margins: Tensor, distance: Tensor, steepness: Tensor, *, correct: Tensor, crossed: Tensor, expansion: float
) -> Tensor:
    """The rule of AME, adaptive margin evolution, for a batch (Ma and Liang, Neurocomputing 551, 2023).

    Args:
        As for ``update_margins``; correct, crossed, distance from ``bpgd_last``.
        steepness: g, (B,), the largest absolute entry of the gradient of the training loss with respect to the noisy
            sample; read only where correct and not crossed.

    Returns:
        (B,): E where misclassified, the distance where crossed, E + Δε/(1 + g)·0.9^⌊E/Δε⌋ elsewhere. There is no
        largest margin, but the larger one is, the slower it grows.
    """
    growth = expansion / (1 + steepness) * AME_DECAY ** torch.div(margins, expansion, rounding_mode="floor")
    moved = torch.where(crossed, distance, margins + growth)
    return torch.where(correct, moved, margins)


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

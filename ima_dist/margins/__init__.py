"""Margins: Algorithm 2, the store that is sharded over the workers, and its snapshots on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ima_dist.margins.store import MarginStore

__all__ = ["MarginStore"]


def __getattr__(name: str) -> Any:
    # Imported when needed: reports read snapshots without torch.
    if name == "MarginStore":
        from ima_dist.margins.store import MarginStore

        return MarginStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

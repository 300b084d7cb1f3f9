"""Bins for histograms of margins."""

import itertools
import math
from collections.abc import Iterable

import numpy as np

from ima_dist.rundir.directory import HISTOGRAM_BINS


def bin_edges(bins: int, eps_max: float) -> np.ndarray:
    """The edges (bins + 1,) of a margin_histogram of history.parquet."""
    return np.arange(bins + 1) * (eps_max / HISTOGRAM_BINS)


def joined(bins: int, eps_max: float, step: float | None) -> list[int]:
    """Which edges of ``bin_edges`` to draw: all but those at multiples of ``step``, as margins of that size would be
    spread by rounding over the bins on both sides. All if the multiples are too close together for that."""
    ratio = step * HISTOGRAM_BINS / eps_max if step else math.inf
    multiples = [i * ratio for i in range(1, math.ceil(bins / ratio))]
    between = [round(place) for place in multiples if abs(place - round(place)) < 1e-4 and round(place) < bins]
    dense = any(after - before < 2 for before, after in itertools.pairwise(between))
    return [place for place in range(bins + 1) if dense or place not in between]


def histogram(margins: np.ndarray, eps_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts (B,) and edges (B + 1,) of margins (N,), to ε_max or as far as they go: those of mma go to 1.05·d_max."""
    # float32 margins may exceed the end by rounding: they belong in the last bin.
    largest = float(margins.max(initial=0.0)) * (1 - 1e-6)
    edges = bin_edges(max(HISTOGRAM_BINS, math.ceil(HISTOGRAM_BINS * largest / eps_max)), eps_max)
    return np.histogram(np.clip(margins.astype(np.float64), 0, edges[-1]), bins=edges)[0], edges


def histogram_of(pieces: Iterable[np.ndarray], eps_max: float) -> tuple[np.ndarray, np.ndarray]:
    """As ``histogram``, of margins that come in pieces."""
    counts = np.zeros(HISTOGRAM_BINS, np.int64)
    for piece in pieces:
        fewer, counts = sorted((counts, histogram(piece, eps_max)[0]), key=len)
        counts[: len(fewer)] += fewer
    return counts, bin_edges(len(counts), eps_max)

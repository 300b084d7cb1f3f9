"""Volumes as samples: the slices of each become the channels of one image (``--data.depth``)."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.data.encoded import Encoded
from ima_dist.data.sources.samples import Labels


class Volumes:
    """Volumes resampled to (depth, height, width), each slice between its two nearest ones: a ``Fetched``.

    slices: single ones, (1, height, width). rows: of each volume, the rows of its slices in order.
    """

    def __init__(self, slices: Encoded, rows: list[np.ndarray], depth: int) -> None:
        self.slices, self.rows, self.advice = slices, rows, slices.advice
        self.shape, self.dtype = (depth, *slices.shape[1:]), slices.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        out = np.empty((len(rows), *self.shape), np.float32)
        for place, row in enumerate(rows.tolist()):
            out[place] = self._resampled(self.rows[row])
        return torch.from_numpy(out)

    def _resampled(self, own: np.ndarray) -> np.ndarray:
        """The first and the last slice stay; of one slice, every channel is that one."""
        position = np.linspace(0, len(own) - 1, self.shape[0])
        below = np.floor(position).astype(np.int64)
        above = np.minimum(below + 1, len(own) - 1)
        needed, place = np.unique(np.concatenate([below, above]), return_inverse=True)
        values = self.slices.fetch(own[needed])[:, 0].numpy()
        low, high = values[place[: len(below)]], values[place[len(below) :]]
        share = (position - below).astype(np.float32)[:, None, None]
        # Rounding must not lead out of the box.
        return np.clip(low + share * (high - low), np.minimum(low, high), np.maximum(low, high))


def as_volumes(slices: Encoded, labels: Labels, depth: int) -> tuple[Volumes, Labels]:
    """The volumes of ``slices`` with their labels. Raises ConfigError if slices of one differ in label or group."""
    if labels.volumes is None:
        raise ConfigError("This prepared copy does not say which slices are of one volume: prepare the data again.")
    order = np.argsort(labels.volumes, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(labels.volumes[order])) + 1)
    rows.sort(key=lambda own: int(own[0]))
    groups = labels.groups or (None,) * len(labels.y)
    for own in rows:
        if len({(labels.y[i], labels.parts[i], groups[i]) for i in own.tolist()}) > 1:
            raise ConfigError(
                f"--data.depth takes volumes as samples, and slices of that of {labels.names[own[0]]} differ in class, "
                "part or group: leave it out, or correct them."
            )
    first = np.array([own[0] for own in rows])
    whole = replace(
        labels,
        y=labels.y[first],
        names=tuple(re.sub(r" slice \d+$", "", labels.names[i]) for i in first.tolist()),
        parts=labels.parts[first],
        groups=None if labels.groups is None else tuple(groups[i] for i in first.tolist()),
        volumes=None,
    )
    return Volumes(slices, rows, depth), whole

"""Equal samples in two parts: what a network has been trained on tells nothing of new samples."""

import hashlib
from typing import Any

import numpy as np
import torch

from ima_dist.data.types import PARTS, DataSet

# Bytes of samples that are compared at a start, and of those in memory at once.
_MOST, _AT_ONCE = 1 << 31, 1 << 24
_NAMED = 3


def equal_samples(data: DataSet) -> dict[str, Any] | None:
    """How many validation and test samples equal one of another part, and the names of the first pairs.

    Equal: with the same values, by a hash of eight bytes, which is all that is kept of a sample. Returns "count",
    "pairs": [[part and name, part and name], …]; None if there are none, or the samples are more than 2 GiB.
    """
    parts = {name: getattr(data, name) for name in PARTS}
    one = data.train.view(torch.arange(1)).x
    if sum(map(len, parts.values())) * one.numel() * one.element_size() > _MOST:
        return None
    size = max(1, _AT_ONCE // max(1, one.numel() * one.element_size()))
    hashes, places = [], []
    for name, split in parts.items():
        for indices in torch.arange(len(split)).split(size):
            rows = split.view(indices).x.contiguous().flatten(1).view(torch.uint8).numpy()
            found = [hashlib.blake2b(row.data, digest_size=8).digest() for row in rows]
            hashes.append(np.frombuffer(b"".join(found), dtype=np.uint64))
            places += [(name, i) for i in indices.tolist()]
    every = np.concatenate(hashes)
    part = np.repeat(np.arange(len(parts)), [len(split) for split in parts.values()])
    order = np.lexsort((part, every))
    new = np.append(True, np.diff(every[order]) != 0)
    start = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))  # the first sample with the same hash
    equal = np.flatnonzero(part[order[start]] != part[order])
    if not len(equal):
        return None
    pairs = sorted((int(order[i]), int(order[start[i]])) for i in equal)

    def called(place: int) -> str:
        name, index = places[place]
        names = parts[name].names
        return f"{name} {index}" if names is None else f"{names[index]} ({name})"

    return {"count": len(equal), "pairs": [[called(a), called(b)] for a, b in pairs[:_NAMED]]}

"""The training samples of each class with the smallest and the largest margins, to be viewed without the data."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from ima_dist.data.types import Resident

_EACH = 6


def extremes(train: Resident, margins: pa.Table, class_names: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    """Up to six correctly classified samples per class with the smallest margins, and as many with the largest.

    margins: as in the margin shards. Returns S rows, by class and then by margin: index (S,), label (S,), margin (S,),
    largest (S,) bool, sample (S, *shape) float16 for images and float32 else; class_names (K,) of text.
    Among samples with the same margin (ε_max, say) those with the smallest index are taken.
    """
    columns = {name: margins[name].to_numpy() for name in ("index", "label", "margin", "correct")}
    right = {name: column[columns["correct"].astype(bool)] for name, column in columns.items()}
    rows, largest = [], []
    for label in np.unique(right["label"]):
        own = np.flatnonzero(right["label"] == label)
        order = own[np.lexsort((right["index"][own], right["margin"][own]))]
        few = min(_EACH, len(order) // 2)
        by_size = own[np.lexsort((right["index"][own], -right["margin"][own]))]
        rows += [*order[:few], *by_size[:few]]
        largest += [False] * few + [True] * few
    chosen = np.array(rows, dtype=np.int64)
    index = right["index"][chosen]
    x, _ = train.batch(torch.from_numpy(index.astype(np.int64)))
    names = class_names or range(int(train.y.max()) + 1)
    return {
        "index": index,
        "label": right["label"][chosen],
        "margin": right["margin"][chosen],
        "largest": np.array(largest, dtype=bool),
        "sample": (x.half() if len(train.shape) == 3 else x.float()).cpu().numpy(),
        "class_names": np.array(names).astype(str),
    }

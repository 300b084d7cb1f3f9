"""Probabilities that a two-class network assigns to clean samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ima_dist.attacks.common import attack_mode
from ima_dist.data.types import Resident

_AT_ONCE = 256


def scores_table(network: nn.Module, splits: dict[str, Resident]) -> pa.Table:
    """One row per sample: split, index in it, label, and the probability of class 1."""
    pieces = []
    with torch.no_grad(), attack_mode(network):
        for name, data in splits.items():
            probabilities = []
            for part in torch.arange(len(data), device=data.x.device).split(_AT_ONCE):
                x, _ = data.batch(part)
                probabilities.append(network(x).softmax(1)[:, 1].double())
            pieces.append(
                pa.table(
                    {
                        "split": pa.repeat(name, len(data)),
                        "index": np.arange(len(data)),
                        "label": data.y.cpu().numpy(),
                        "probability": torch.cat(probabilities).cpu().numpy() if probabilities else np.empty(0),
                    }
                )
            )
    return pa.concat_tables(pieces)

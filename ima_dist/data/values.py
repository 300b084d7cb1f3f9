"""The values of samples: whether they are finite and inside the box, and 16 bits."""

import math
import warnings
from typing import Any

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, DataNote
from ima_dist.data.pictures import DEEPEST
from ima_dist.data.types import Split

# Bytes of samples that are checked at once.
_AT_ONCE = 1 << 26


def check_values(parts: dict[str, Split], box: tuple[float, float] | None) -> None:
    """Raise ConfigError unless all samples are finite and inside the box; without a copy of all of them.

    Bytes are always valid. Samples that are read when they are needed were checked when they were prepared.
    """
    for name, part in parts.items():
        if part.dtype == torch.uint8 or not isinstance(part.stored, torch.Tensor) or not part.bytes_each:
            continue
        size = max(1, _AT_ONCE // part.bytes_each)
        least, most = math.inf, -math.inf
        for first in range(0, len(part), size):
            chosen = slice(first, min(first + size, len(part)))
            x = part.stored[chosen] if part.rows is None else part.stored[part.rows[chosen]]
            low, high = (float(value) for value in torch.aminmax(x))
            if not (math.isfinite(low) and math.isfinite(high)):
                wrong = first + int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
                raise ConfigError(f"x of {name} has a NaN or infinite value, first in sample {wrong}.")
            least, most = min(least, low), max(most, high)
        if box is not None and (least < box[0] or most > box[1]):
            raise ConfigError(
                f"x of {name} goes from {least:g} to {most:g}, outside its box ({box[0]:g}, {box[1]:g}): "
                "correct the box or the scaling."
            )


def levels(what: str, value: Any) -> Any:
    """``value``; if it holds uint16, as float32 from 0 to 1, which is said with its range."""
    if isinstance(value, torch.Tensor) and value.dtype == torch.uint16:
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.newbyteorder("=") != np.uint16 or not value.size:
        return value
    text = f"{what} is uint16 from {value.min()} to {value.max()}: it is divided by {DEEPEST}"
    warnings.warn(DataNote(f'{text}. Return "box": (0, 1) to keep noise in that range.'), stacklevel=2)
    return (value / np.float32(DEEPEST)).astype(np.float32)

"""Checks of the data that a source returned; messages continue "it returned data that cannot be used: …"."""

import math
from typing import Any

import torch

from ima_dist.config.errors import ConfigError
from ima_dist.data.types import UINT8_BOX, Split


def check_labels(parts: dict[str, Split], num_classes: int, class_names: tuple[str, ...] | None) -> None:
    """Raise ConfigError unless every label and the class names fit the number of classes."""
    if num_classes < 2:
        raise ConfigError(f"it has {num_classes} classes, but a classifier needs at least two.")
    if class_names is not None and len(class_names) != num_classes:
        raise ConfigError(f"it has {len(class_names)} class names but {num_classes} classes.")
    for name, part in parts.items():
        wrong = ((part.y < 0) | (part.y >= num_classes)).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise ConfigError(f"sample {i} of {name} has the label {int(part.y[i])}, outside 0 to {num_classes - 1}.")


def count_classes(y: torch.Tensor) -> int:
    """Number of classes among the training labels. Raises ConfigError if they leave one out."""
    # A gap is nearly always a mistake (labels from 1, say), and would add an output that is never trained.
    present = y[y >= 0].unique().tolist()
    for c, label in enumerate(present):
        if c != label:
            raise ConfigError(f"class {c} has no training sample: number the classes from 0 without a gap.")
    return len(present)


def check_box(parts: dict[str, Split], given: Any) -> tuple[float, float] | None:
    """The box to use, where ``given`` may be None. Raises ConfigError if it is no box or samples lie outside it."""
    uint8 = parts["train"].stored.dtype == torch.uint8
    if given is None:
        return UINT8_BOX if uint8 else None
    try:
        low, high = (float(v) for v in given)
    except (TypeError, ValueError):
        raise ConfigError(f"box must be a pair of numbers (low, high) or None, not {given!r}.") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"box must be finite with low < high, not {given!r}.")
    if uint8:
        if (low, high) != UINT8_BOX:
            raise ConfigError(f"box of uint8 images must be (0, 1), their range once scaled, not {given!r}.")
        return UINT8_BOX
    for name, part in parts.items():
        if len(part) and (part.x.min() < low or part.x.max() > high):
            raise ConfigError(
                f"x of {name} goes from {part.x.min().item():g} to {part.x.max().item():g}, outside its box "
                f"({low:g}, {high:g}): correct the box or the scaling."
            )
    return low, high

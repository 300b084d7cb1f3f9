"""Loading a data set: calling the function that the configuration names, and checking what it returns."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ima_dist.config.arguments import check_call
from ima_dist.config.errors import ConfigError, did_you_mean, first_line
from ima_dist.config.references import resolve_reference
from ima_dist.config.schema import DataConfig
from ima_dist.data.arrays import from_array, is_mapped
from ima_dist.data.augment import PADDING, check_augmentation
from ima_dist.data.choosing import choose_balanced, class_quotas
from ima_dist.data.fetched import Fetched
from ima_dist.data.types import PARTS, UINT8_BOX, DataSet, Split

# Bytes of samples that are checked at once.
_AT_ONCE = 1 << 26


def load(config: DataConfig, seed: int, *, checked: bool = True) -> DataSet:
    """The data set that ``config.source`` names, checked, on the CPU, with ``config.subset`` applied.

    The function is called with (config, seed, **config.args) and returns a DataSet, or a dictionary with "train",
    "test" and, optionally, "val": each (x, y) of numpy arrays or tensors; optionally also "box" (low, high) and
    "class_names". Without class names, the classes are those that occur in the training set.
    ``checked``: also look at all floating-point samples, which reads them once; workers leave it to whoever started
    them.
    Raises ConfigError if there is no such function, if it fails (the exception stays chained), or if what it
    returns cannot be trained on.
    """
    function = resolve_reference(config.source, "data.source")
    check_call(function, config.source, "data.args", 2, config.args)
    try:
        returned = function(config, seed, **config.args)
    except ConfigError:
        raise
    except Exception as e:
        raise ConfigError(
            f"--data.source {config.source} failed, correct it: {first_line(e)}{_missing_directory(config)}."
        ) from e
    try:
        data = _normalise(returned, checked)
    except ConfigError as e:
        raise ConfigError(f"--data.source {config.source} returned data that cannot be used: {e}") from e
    data = data if config.subset is None else _subset(data, config.subset, seed)
    if config.augment is not None and checked:
        check_augmentation(config.augment, data)
    return data


def _missing_directory(config: DataConfig) -> str:
    """A remark on ``--data.dir``, if that may be why the user's function has failed."""
    if config.dir is None:
        return " (config.dir is None, because --data.dir was not given)"
    return "" if Path(config.dir).exists() else f" (--data.dir {config.dir} does not exist)"


def _subset(data: DataSet, n: int, seed: int) -> DataSet:
    classes = data.num_classes
    if n > len(data.train):
        raise ConfigError(f"--data.subset {n} exceeds the number of training samples: give at most {len(data.train)}.")
    if n < classes:
        raise ConfigError(f"--data.subset must be at least the number of classes, {classes}, not {n}.")
    wanted = class_quotas(n, classes)
    available = torch.bincount(data.train.y, minlength=classes).tolist()
    for c in range(classes):
        if available[c] < wanted[c]:
            raise ConfigError(
                f"--data.subset {n} needs {wanted[c]} training samples of class {c}, which has "
                f"only {available[c]}: the largest balanced subset has {min(available) * classes}."
            )

    def capped(part: Split, stream: int) -> Split:
        cap = max(round(len(part) * n / len(data.train)), 10 * classes)
        if cap >= len(part):
            return part
        return part.take(choose_balanced(part.y, class_quotas(cap, classes), seed, stream))

    train = data.train.take(choose_balanced(data.train.y, wanted, seed, stream=0))
    return replace(data, train=train, val=capped(data.val, 1), test=capped(data.test, 2))


def _normalise(returned: Any, checked: bool) -> DataSet:
    if isinstance(returned, DataSet):
        given = vars(returned)
    elif isinstance(returned, dict):
        given = returned
        known = (*PARTS, "box", "class_names")
        for key in given:
            if key not in known:
                raise ConfigError(f"it has an unknown entry {key!r}{did_you_mean(key, known)}.")
    else:
        raise ConfigError(f"it must be a DataSet or a dictionary, not {type(returned).__name__}.")

    for name in ("train", "test"):
        if given.get(name) is None:
            raise ConfigError(f"it lacks the entry {name!r}, a pair (x, y).")
    train = _split("train", given["train"])
    val = None if given.get("val") is None else _split("val", given["val"])
    test = _split("test", given["test"])
    for name, part in (("train", train), ("test", test)):
        if len(part) == 0:
            raise ConfigError(f"{name} holds no samples, give at least one.")
    val = train.view(torch.arange(0)) if val is None or not len(val) else val
    for name, part in (("val", val), ("test", test)):
        if (part.shape, part.dtype) != (train.shape, train.dtype):
            kinds = [f"{_name(p.dtype)} of shape {p.shape}" for p in (part, train)]
            raise ConfigError(f"a sample of {name} is {kinds[0]}, but one of train is {kinds[1]}.")

    names = None if given.get("class_names") is None else tuple(map(str, given["class_names"]))
    parts = {"train": train, "val": val, "test": test}
    if isinstance(returned, DataSet):
        num_classes = returned.num_classes
    elif names is not None:
        num_classes = len(names)
    else:
        num_classes = _count_classes(train.y)
    _check_labels(parts, num_classes, names)
    box = _check_box(train.dtype == torch.uint8, given.get("box"))
    augment = isinstance(returned, DataSet) and returned.augment
    shape = train.shape
    if augment and (len(shape) != 3 or min(shape[1:]) <= PADDING):
        raise ConfigError(f"augment needs images (channels, height, width) of more than {PADDING} pixels, not {shape}.")
    data = DataSet(train, val, test, box, num_classes, names, augment)
    if checked:
        _check_values(data)
    return data


def _split(name: str, given: Any) -> Split:
    if isinstance(given, Split):
        x, y, names, rows = given.stored, given.y, given.names, given.rows
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        x, y, names, rows = given[0], given[1], None, None
    else:
        raise ConfigError(f"{name} must be a pair (x, y), not {type(given).__name__}.")
    mapped = given.mapped if isinstance(given, Split) else is_mapped(x)
    x, y = _stored(f"x of {name}", x), _tensor(f"y of {name}", y)
    if y.numel() and (y.is_floating_point() or y.is_complex() or y.dim() != 1):
        raise ConfigError(f"y of {name} must be one whole number for each sample, not {_kind(y)}.")
    axes = x.dim() if isinstance(x, torch.Tensor) else 1 + len(x.shape)
    count = 0 if axes == 0 else len(x) if rows is None else len(rows)
    if axes == 0 or count != len(y):
        raise ConfigError(f"{name} has {count or 'no'} samples x but {len(y)} labels y.")
    if names is not None and len(names) != len(y):
        raise ConfigError(f"{name} has {len(names)} names but {len(y)} samples.")
    if len(y) and axes < 2:
        raise ConfigError(f"x of {name} must have shape (N, features…), not (N,).")
    if x.dtype != torch.uint8 and not x.dtype.is_floating_point:
        kind = _kind(x) if isinstance(x, torch.Tensor) else _name(x.dtype)
        raise ConfigError(f"x of {name} must be uint8 or floating point, not {kind}.")
    return Split(x, y.to(torch.int64), None if names is None else tuple(names), rows, mapped)


def _stored(what: str, value: Any) -> torch.Tensor | Fetched:
    if not isinstance(value, (torch.Tensor, np.ndarray)) and callable(getattr(value, "fetch", None)):
        fetched: Fetched = value
        return fetched
    return _tensor(what, value)


def _tensor(what: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if not isinstance(value, np.ndarray):
        raise ConfigError(f"{what} must be a numpy array or a tensor, not {type(value).__name__}.")
    if np.ma.is_masked(value):
        raise ConfigError(f"{what} is a masked array with masked values: fill them (numpy.ma.filled).")
    if value.dtype.kind not in "buif" or value.dtype.itemsize > 8:
        raise ConfigError(f"{what} must hold numbers of at most 64 bits, not {value.dtype}.")
    return from_array(value)


def _kind(x: torch.Tensor) -> str:
    return f"{_name(x.dtype)} of shape {tuple(x.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- checks, whose messages continue "it returned data that cannot be used: …"


def _check_labels(parts: dict[str, Split], num_classes: int, class_names: tuple[str, ...] | None) -> None:
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


def _count_classes(y: torch.Tensor) -> int:
    """Number of classes among the training labels. Raises ConfigError if they leave one out."""
    # A gap is nearly always a mistake (labels from 1, say), and would add an output that is never trained.
    present = y[y >= 0].unique().tolist()
    for c, label in enumerate(present):
        if c != label:
            raise ConfigError(f"class {c} has no training sample: number the classes from 0 without a gap.")
    return len(present)


def _check_box(uint8: bool, given: Any) -> tuple[float, float] | None:
    """The box to use, where ``given`` may be None. Raises ConfigError if it is no box, or not that of uint8 images."""
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
    return low, high


def _check_values(data: DataSet) -> None:
    """Raise ConfigError unless all samples are finite and inside the box; without a copy of all of them.

    Bytes are always valid. Samples that are read when they are needed were checked when they were prepared.
    """
    for name in PARTS:
        part: Split = getattr(data, name)
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
        if data.box is not None and (least < data.box[0] or most > data.box[1]):
            raise ConfigError(
                f"x of {name} goes from {least:g} to {most:g}, outside its box ({data.box[0]:g}, {data.box[1]:g}): "
                "correct the box or the scaling."
            )

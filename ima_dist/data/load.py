"""Loading a data set: calling the function that the configuration names, and checking what it returns."""

import hashlib
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ima_dist.config.arguments import check_call
from ima_dist.config.errors import ConfigError, DataWarning, did_you_mean, first_line
from ima_dist.config.references import resolve_reference
from ima_dist.config.schema import DataConfig
from ima_dist.data import arrays
from ima_dist.data.augment import PADDING
from ima_dist.data.choosing import choose_balanced, class_quotas, quotas_in_proportion
from ima_dist.data.fetched import Fetched
from ima_dist.data.groups import check_file, check_groups, codes_of, divide, split_level, with_groups
from ima_dist.data.hidden import hidden
from ima_dist.data.mapped import from_array, is_mapped
from ima_dist.data.types import PARTS, UINT8_BOX, DataSet, Split
from ima_dist.data.values import check_values, levels


def load(config: DataConfig, seed: int) -> DataSet:
    """The data set that ``config.source`` names, checked, on the CPU, with ``config.subset`` applied.

    The function is called with (config, seed, **config.args) and returns a DataSet, or a dictionary with "train",
    "test" and, optionally, "val": each (x, y) of numpy arrays or tensors, or (x, y, groups) with what must not be
    split, one text or whole number per sample. Or, in place of the parts, "all", which ``config.split`` then divides;
    "parts" beside it names the part of each sample, where it is given, and is "" elsewhere.
    Optionally also "box" (low, high) and "class_names". Without class names, the classes are those that occur in the
    training set.
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
    check_file(config.groups, config.groups_sha256)
    try:
        data = grouped(checked(_divided(returned, config, seed)), config)
    except ConfigError as e:
        raise ConfigError(f"--data.source {config.source} returned data that cannot be used: {e}") from e
    return subset(hidden(data) if config.hide_names else data, config.subset, seed)


def of_arrays(x: Any, y: Any, num_classes: int, box: tuple[float, float] | None) -> DataSet:
    """Samples x (N, *shape) with labels y (N,), checked as those of ``load``, in place of each part of a data set.

    Raises ConfigError.
    """
    split = _split("the samples", (x, y))
    if not len(split):
        raise ConfigError("There are no samples: give at least one.")
    try:
        _check_labels({"the samples": split}, num_classes, None)
        box = _check_box({"the samples": split}, box)
    except ConfigError as error:
        raise ConfigError(str(error)[0].upper() + str(error)[1:]) from None
    return DataSet(split, split, split, box, num_classes)


def _missing_directory(config: DataConfig) -> str:
    """A remark on ``--data.dir``, if that may be why the user's function has failed."""
    if config.dir is None:
        return " (config.dir is None, because --data.dir was not given)"
    return "" if Path(config.dir).exists() else f" (--data.dir {config.dir} does not exist)"


def subset(data: DataSet, n: int | None, seed: int) -> DataSet:
    """``data`` with n training samples, the same number of each class, and a test set in proportion; all for None.

    Raises ConfigError if there are too few.
    """
    if n is None:
        return data
    classes = data.num_classes
    if n > len(data.train):
        raise ConfigError(f"--data.subset {n} exceeds the number of training samples: give at most {len(data.train)}.")
    if n < classes:
        raise ConfigError(f"--data.subset must be at least the number of classes, {classes}, not {n}.")
    available = torch.bincount(data.train.y, minlength=classes).tolist()
    equal = class_quotas(n, classes)
    lacking = [c for c in range(classes) if available[c] < equal[c]]
    if lacking:
        c = lacking[0]
        warnings.warn(
            DataWarning(
                f"--data.subset {n} takes the classes in proportion to their sizes: equal shares would need {equal[c]} "
                f"training samples of class {c}, which has {available[c]}."
            ),
            stacklevel=2,
        )

    def quotas(part: Split, count: int) -> list[int]:
        if not lacking:
            return class_quotas(count, classes)
        return quotas_in_proportion(torch.bincount(part.y, minlength=classes).tolist(), count)

    def capped(part: Split, stream: int) -> Split:
        cap = max(round(len(part) * n / len(data.train)), 10 * classes)
        if cap >= len(part):
            return part
        return part.take(choose_balanced(part.y, quotas(part, cap), seed, stream))

    train = data.train.take(choose_balanced(data.train.y, quotas(data.train, n), seed, stream=0))
    return replace(data, train=train, val=capped(data.val, 1), test=capped(data.test, 2))


def _divided(returned: Any, config: DataConfig, seed: int) -> Any:
    """What the function returned, with the parts "train", "val" and "test" if it has "all" in their place."""
    if not (isinstance(returned, dict) and "all" in returned):
        if config.split != DataConfig.model_fields["split"].default:
            raise ConfigError('it has parts of its own, so --data.split has no use: leave it out, or return "all".')
        return returned
    if returned.keys() & set(PARTS):
        raise ConfigError('it has both "all" and parts: return one or the other.')
    every = with_groups("all", _split("all", returned["all"]), config.groups)
    given = None if returned.get("parts") is None else np.array(returned["parts"], dtype=str)
    if given is not None and (len(given) != len(every) or not set(given.tolist()) <= {*PARTS, ""}):
        raise ConfigError('"parts" must have train, val, test or an empty text for each sample of "all".')
    key = int.from_bytes(bytes.fromhex(_test_key(every)), signed=True)
    parts = divide(every.y.numpy(), every.groups, config.split, test_key=key, seed=seed, parts=given)
    rows = {name: torch.from_numpy(np.flatnonzero(parts == name)) for name in PARTS}
    rest = {name: value for name, value in returned.items() if name not in ("all", "parts")}
    return rest | {name: every.view(own) for name, own in rows.items()}


def _test_key(every: Split) -> str:
    """What chooses the test samples: labels, names and groups, which no option on how samples are read changes.

    So weights from a run on smaller images have seen none of them. Samples without names go by their values.
    """
    if every.names is None:
        return every.digest()
    groups = None if every.groups is None else codes_of(every.groups).tolist()
    return hashlib.sha256(json.dumps([every.y.tolist(), every.names, groups]).encode()).hexdigest()[:16]


def grouped(data: DataSet, config: DataConfig) -> DataSet:
    """The data with the groups that ``--data.groups`` names, none of them in two parts, and with the level of the
    split. Raises ConfigError."""
    parts = {name: with_groups(name, getattr(data, name), config.groups) for name in PARTS}
    check_groups(parts)
    known = all(split.groups is not None for split in parts.values() if len(split))
    ours = config.source.startswith("ima_dist.data.") and config.source != arrays.SOURCE
    level = data.split_level if ours and not known else split_level(parts)
    return replace(data, train=parts["train"], val=parts["val"], test=parts["test"], split_level=level)


def checked(returned: Any) -> DataSet:
    """What a ``--data.source`` function has returned, as a DataSet. Raises ConfigError if it cannot be trained on."""
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
    box = _check_box(parts, given.get("box"))
    augment = isinstance(returned, DataSet) and returned.augment
    shape = train.shape
    if augment and (len(shape) != 3 or min(shape[1:]) <= PADDING):
        raise ConfigError(f"augment needs images (channels, height, width) of more than {PADDING} pixels, not {shape}.")
    level = returned.split_level if isinstance(returned, DataSet) else None
    return DataSet(train, val, test, box, num_classes, names, augment, level)


def _split(name: str, given: Any) -> Split:
    rows = groups = by = None
    if isinstance(given, Split):
        x, y, names, rows = given.stored, given.y, given.names, given.rows
        groups, by = given.groups, given.grouped_by
    elif isinstance(given, (tuple, list)) and len(given) in (2, 3):
        x, y, names = given[0], given[1], None
        groups = given[2] if len(given) == 3 else None
    else:
        raise ConfigError(f"{name} must be a pair (x, y), not {type(given).__name__}.")
    mapped = given.mapped if isinstance(given, Split) else is_mapped(x)
    x, y = _stored(f"x of {name}", x), _tensor(f"y of {name}", _read(y))
    if y.numel() and (y.is_floating_point() or y.is_complex() or y.dim() != 1):
        raise ConfigError(f"y of {name} must be one whole number for each sample, not {_kind(y)}.")
    if rows is not None and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(x):
        raise ConfigError(f"rows of {name} must be from 0 to {len(x) - 1}, as x has {len(x)} samples.")
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
    named, grouped = None if names is None else tuple(names), _groups(name, groups, len(y))
    return Split(x, y.to(torch.int64), named, rows, grouped, mapped, by)


def _stored(what: str, value: Any) -> torch.Tensor | Fetched:
    if not isinstance(value, (torch.Tensor, np.ndarray)) and callable(getattr(value, "fetch", None)):
        fetched: Fetched = value
        return fetched
    return _tensor(what, levels(what, _read(value)))


def _groups(name: str, given: Any, count: int) -> tuple[str | None, ...] | None:
    """The groups of a part as text. Raises ConfigError unless there is one for each sample."""
    if given is None:
        return None
    values = given.tolist() if isinstance(given, (np.ndarray, torch.Tensor)) else list(given)
    if len(values) != count:
        raise ConfigError(f"{name} has {len(values)} groups but {count} samples.")
    wrong = next((v for v in values if v is not None and (isinstance(v, bool) or not isinstance(v, str | int))), None)
    if wrong is not None:
        raise ConfigError(f"groups of {name} must be texts or whole numbers, not {wrong!r}.")
    return tuple(None if value is None else str(value) for value in values)


def _read(value: Any) -> Any:
    """``value``; if it is an array of another library, such as a data set of an HDF5 file, as NumPy's."""
    ours = isinstance(value, torch.Tensor | np.ndarray)
    return np.asarray(value) if not ours and hasattr(value, "__array__") else value


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
        if any((part.y < 0).any() for part in parts.values()):
            raise ConfigError("it has labels below 0: number the classes from 0.")
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


def _check_box(parts: dict[str, Split], given: Any) -> tuple[float, float] | None:
    """The box to use, where ``given`` may be None. Raises ConfigError if it is no box, or if samples lie outside it or
    are not finite."""
    box = _box(next(iter(parts.values())).dtype == torch.uint8, given)
    check_values(parts, box)
    return box


def _box(uint8: bool, given: Any) -> tuple[float, float] | None:
    """Raises ConfigError if ``given`` is no box, or not that of uint8 images."""
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

"""Groups of samples that belong together, such as the images of one patient: where they come from, and how whole groups
are divided into training, validation and test samples."""

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.core.noise import mix64
from ima_dist.data.types import PARTS, Split

Groups = Sequence[str | None]  # of each sample; None if it belongs to nobody else's
HEADER = "header"
GROUP = "group"  # what a group is called of which nothing else is known
# Streams of the keys by which test and validation groups are chosen.
_STREAMS = {"test": 101, "val": 102}


def codes_of(groups: Groups) -> np.ndarray:
    """(N,) int64, equal for samples of one group; a sample without one has a code of its own."""
    numbers: dict[str, int] = {}
    codes = [-1 if name is None else numbers.setdefault(name, len(numbers)) for name in groups]
    found = np.array(codes, dtype=np.int64)
    alone = found < 0
    found[alone] = len(numbers) + np.arange(alone.sum())
    return found


def group_codes(split: Split) -> np.ndarray | None:
    """``codes_of`` a split; None if its groups are not known."""
    return None if split.groups is None else codes_of(split.groups)


# ---- where they come from


def with_groups(part: str, split: Split, option: str | None) -> Split:
    """The split with the groups that ``--data.groups`` names: of a file, or of the samples' names.

    option: a CSV file of name,group, or a regular expression on names, whose first parenthesis (or else all of it) is
    the group; or what the source has grouped by already (a column of a list, fields of a header).
    Raises ConfigError if a sample has no group.
    """
    if option is None or not len(split):
        return split
    is_file = Path(option).is_file()
    if not is_file and _is_done(split, option):
        return split
    if option == HEADER:
        raise ConfigError(f"--data.groups {HEADER} goes with sources whose files have a header, such as dicom.")
    if split.names is None and split.groups is not None:
        raise ConfigError(
            f"--data.groups {option} has no use, as {part} comes with groups and without names: leave it out."
        )
    if split.names is None:
        raise ConfigError(
            f"--data.groups {option} goes by the names of the samples, and those of {part} have none: return the "
            "groups from your function, as the third of (x, y, groups)."
        )
    if not is_file and _is_path(option):
        raise ConfigError(f"--data.groups {option}: there is no such file.")
    found = _of_file(Path(option), split.names) if is_file else _of_names(option, split.names)
    missing = [name for name, group in zip(split.names, found, strict=True) if not group]
    if missing:
        count = f"{len(missing):,} of the {len(found):,} samples of {part}"
        what = "complete it" if is_file else "it is neither a file nor a column here, and no pattern of all names"
        raise ConfigError(f"--data.groups {option} has no group for {count}, such as {missing[0]}: {what}.")
    return replace(split, groups=tuple(found), grouped_by=GROUP)


def check_file(option: str | None, sha256: str | None) -> None:
    """Raise ConfigError if the file of groups is no longer the one that the configuration means."""
    if option is None or sha256 is None or not Path(option).is_file():
        return
    if hashlib.sha256(Path(option).read_bytes()).hexdigest() != sha256:
        raise ConfigError(
            f"--data.groups {option} has changed since it was given (it has another SHA-256): bring it back as it "
            "was, or begin a new run."
        )


def _is_done(split: Split, option: str) -> bool:
    """Whether the source has grouped the samples as the option says."""
    if split.groups is None or split.grouped_by is None:
        return False
    return option == HEADER or option.strip().lower() == split.grouped_by.lower()


def _is_path(option: str) -> bool:
    """Whether it must be meant as a file: a plain path is of no use as a pattern."""
    return option.lower().endswith(".csv") or ("/" in option and not re.search(r"[\\()\[\]{}*+?|^$]", option))


def _of_file(path: Path, names: Sequence[str]) -> list[str]:
    """The groups of names, or of file names without their folders, in a CSV file; "" for those that it lacks."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"--data.groups {path} cannot be read: {first_line(error)}.") from None
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise ConfigError(f"--data.groups {path} has the line {','.join(wrong)!r}: write a name and its group.")
    known: dict[str, str] = {}
    for name, group in rows:
        if known.setdefault(name.strip(), group.strip()) != group.strip():
            raise ConfigError(f"--data.groups {path} names {name} twice, with different groups: correct it.")
    return [next((known[key] for key in _keys(name) if known.get(key)), "") for name in names]


def _keys(name: str) -> tuple[str, ...]:
    """What a file may call a sample: its name, or that of the file that it is a slice of, with or without folders."""
    file = re.sub(r" slice \d+$", "", name)
    return name, name.rsplit("/", 1)[-1], file, file.rsplit("/", 1)[-1]


def _of_names(pattern: str, names: Sequence[str]) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"--data.groups {pattern} is neither a file, nor a column, nor a regular expression ({error}): correct it."
        ) from None
    found = [expression.search(name) for name in names]
    return ["" if match is None else (match[1] if expression.groups else match[0]) or "" for match in found]


# ---- how they are divided


def divide(
    y: np.ndarray,
    groups: Groups | None,
    shares: Sequence[float],
    *,
    test_key: int,
    seed: int,
    parts: np.ndarray | None = None,
) -> np.ndarray:
    """(N,) of "train", "val" and "test", by class, with the samples of a group in one part.

    y: (N,) classes. shares: of training, validation and test samples, in any unit. test_key: chooses the test samples,
    so that they are the same for all seeds. seed: chooses the validation samples. parts: (N,) of parts that are given,
    or ""; what is not given is held out of the training samples.
    Each class loses the wanted share of its samples as nearly as whole groups allow; a group counts for the class that
    most of its samples have. A class of fewer than three groups loses none, and others at most a third of their groups,
    unless the share is larger.
    """
    given = np.full(len(y), "", dtype="U5") if parts is None else parts.astype("U5")
    found = np.where(given == "", "train", given)
    codes = np.arange(len(y)) if groups is None else codes_of(groups)
    whole = dict(zip(PARTS, np.asarray(shares, dtype=float) / sum(shares), strict=True))
    left = 1.0
    for part, key in (("test", test_key), ("val", seed)):
        if part in given:
            continue
        rows = np.flatnonzero(found == "train")
        found[rows[_chosen(y[rows], codes[rows], whole[part] / left, key, _STREAMS[part])]] = part
        left -= whole[part]
    return found


def _chosen(y: np.ndarray, codes: np.ndarray, share: float, key: int, stream: int) -> np.ndarray:
    """(N,) bool: whole groups with about ``share`` of the samples of each class."""
    _, first, place, sizes = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
    pairs, counts = np.unique(np.stack([place, y]), axis=1, return_counts=True)
    most = np.lexsort((-pairs[1], counts, pairs[0]))  # the last of a group is its most frequent class
    kind = np.empty(len(sizes), dtype=np.int64)
    kind[pairs[0][most]] = pairs[1][most]
    hashed = mix64(mix64(torch.from_numpy(first)) + mix64(mix64(torch.tensor(key)) + stream)).numpy()
    taken = np.zeros(len(sizes), dtype=bool)
    for c in np.unique(kind).tolist() if share > 0 else ():
        own = np.flatnonzero(kind == c)
        if len(own) < 3:
            continue
        own = own[np.argsort(hashed[own])]
        wanted = share * sizes[own].sum()
        # If most samples are of one group, which stays, not all others may go.
        most_groups = round(len(own) * max(share, 1 / 3))
        total = count = 0
        for group, size in zip(own.tolist(), sizes[own].tolist(), strict=True):
            if count < most_groups and 2 * (wanted - total) >= size:  # with it the class is no further from its share
                taken[group] = True
                total, count = total + size, count + 1
        if not count:
            taken[own[np.argmin(sizes[own])]] = True
    return np.asarray(taken[place])


# ---- what must not be


def check_groups(parts: dict[str, Split]) -> None:
    """Raise ConfigError if samples of one group are in two parts, with its name."""
    names = {part: set(split.groups or ()) - {None} for part, split in parts.items()}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        both = sorted(map(str, names[one] & names[other]))
        if both:
            many = f"{len(both):,} groups are in both {one} and {other}, such as" if len(both) > 1 else "The group"
            end = "" if len(both) > 1 else f" is in both {one} and {other}"
            raise ConfigError(f"{many} {both[0]}{end}: keep all samples of a group in one part.")


def split_level(parts: dict[str, Split]) -> str:
    """How the samples of one's own data are divided, as words after "split"."""
    if any(split.groups is None for split in parts.values() if len(split)):
        return "by sample: groups unknown"
    count = sum(len(np.unique(codes_of(split.groups))) for split in parts.values() if split.groups)
    names = {split.grouped_by or GROUP for split in parts.values() if len(split)}
    return f"by {names.pop() if len(names) == 1 else GROUP}: {count:,} in all"

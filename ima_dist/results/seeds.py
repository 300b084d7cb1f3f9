"""The runs of one experiment that may be averaged: one for each seed, all attacked in the same way."""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from ima_dist.config.errors import ConfigError
from ima_dist.results.choice import BySample, Candidate, Measured, make_candidate
from ima_dist.rundir.curves import Row, noise_key, protocol_rows
from ima_dist.rundir.files import inside
from ima_dist.rundir.run import Run


@dataclass(frozen=True, eq=False)
class Network:
    """A run's network after ``epoch`` epochs."""

    run: Run
    epoch: int

    @property
    def seed(self) -> int:
        return int(self.run.options["seed"])

    @cached_property
    def evaluations(self) -> dict[tuple[str, str], Row]:
        """(Attack, protocol) -> noise level -> point."""
        return protocol_rows(self.run.points, self.epoch)

    @property
    def written(self) -> tuple[int, str]:
        """Ascending with the time at which its results were last written."""
        try:
            return self.run.dir.summary_path.stat().st_mtime_ns, self.run.name
        except OSError:
            return 0, self.run.name


def attacks_of(networks: Iterable[Network]) -> set[str]:
    """The attacks that any of the networks was evaluated with."""
    return {attack for network in networks for attack, _ in network.evaluations}


def common_settings(groups: Iterable[Sequence[Network]], attack: str) -> str | None:
    """The settings of an attack that most groups of networks share, of equals the strictest; None without any."""
    strength: dict[str, tuple[int, ...]] = {}
    count: Counter[str] = Counter()
    for networks in groups:
        points = [point for n in networks for (name, _), row in n.evaluations.items() if name == attack
                  for point in row.values()]  # fmt: skip
        count.update({point.settings for point in points})
        for point in points:
            strength[point.settings] = max(strength.get(point.settings, ()), point.strength)
    return max(count, key=lambda settings: (count[settings], strength[settings]), default=None)


def one_per_seed(
    networks: Sequence[Network], attack: str, settings: str | None = None
) -> tuple[list[tuple[Network, Row]], list[str]]:
    """One network per seed with its row, all attacked by one protocol, and a sentence for what is left out.

    The protocol is the one that most seeds have, of equals the strictest. Of several runs with one seed, those with the
    most noise levels, and of these the one whose results were written last, is taken. ``settings``: only protocols
    with these settings of the attack.
    """
    found: dict[str, dict[int, list[tuple[Network, Row]]]] = {}
    strength: dict[str, tuple[int, ...]] = {}
    for network in networks:
        for (name, protocol), row in network.evaluations.items():
            point = next(iter(row.values()))
            if name == attack and settings in (None, point.settings):
                found.setdefault(protocol, {}).setdefault(network.seed, []).append((network, row))
                strength[protocol] = point.strength
    if not found:
        return [], []
    chosen = found[max(found, key=lambda protocol: (len(found[protocol]), strength[protocol]))]
    kept, sentences = [], []
    for seed, several in sorted(chosen.items()):
        several.sort(key=lambda pair: (len(pair[1]), pair[0].written))
        kept.append(several[-1])
        if len(several) > 1:
            others = ", ".join(network.run.name for network, _ in several[:-1])
            one = several[-1][0].run.name
            sentences.append(
                f"{len(several)} runs have seed {seed}: {one} counts, the newest with all noise levels; not {others}."
            )
    used = {network for pairs in chosen.values() for network, _ in pairs}
    otherwise = [network.run.name for network in networks if network not in used]
    if otherwise:
        sentences.append(f"Not counted, as not attacked with {attack} in the same way: {', '.join(otherwise)}.")
    return kept, sentences


def candidates_of(
    groups: Sequence[tuple[str, Sequence[Network]]], attack: str, levels: Sequence[float] = ()
) -> tuple[list[int], list[Candidate], list[list[tuple[Network, Row]]], list[str]]:
    """Candidates to compare under ``attack``, from the name and the networks of each.

    Returns the places of their groups, the candidates, the networks behind each, and a sentence for whatever is left
    out. All were attacked with the same settings; areas are over the noise levels that all have.
    """
    settings = common_settings([networks for _, networks in groups], attack)
    kept: list[tuple[int, list[tuple[Network, Row]]]] = []
    sentences: list[str] = []
    for place, (name, networks) in enumerate(groups):
        pairs, said = one_per_seed(networks, attack, settings)
        sentences += [f"{name}: {text}" for text in said]
        if not pairs:
            said_settings = " ".join(part for part in (settings or "").split() if not part.endswith("=None"))
            sentences.append(f"{name} is left out: it was not attacked with {attack} as most are ({said_settings}).")
            continue
        there = set.intersection(*({*row} for _, row in pairs))
        lacking = [x for x in (0.0, *levels) if x not in there]
        if lacking:
            have = ", ".join(f"{x:g}" for x in sorted(there))
            sentences.append(f"{name} has no accuracy at noise {lacking[0]:g}: it has {have}.")
            continue
        kept.append((place, pairs))
    everywhere = sorted(set.intersection(*({*row} for _, pairs in kept for _, row in pairs))) if kept else []
    candidates = [_candidate(groups[place][0], pairs, everywhere, levels) for place, pairs in kept]
    return [place for place, _ in kept], candidates, [pairs for _, pairs in kept], sentences


def _candidate(
    name: str, pairs: list[tuple[Network, Row]], everywhere: list[float], levels: Sequence[float]
) -> Candidate:
    points = [point for _, row in pairs for point in row.values()]
    samples, counts = min(point.effective for point in points), [p.groups for p in points if p.groups is not None]
    groups = min(counts) if len(counts) == len(points) else None
    rows = [(network, {x: row[x] for x in everywhere}) for network, row in pairs]
    runs: list[Measured] = [({x: point.share for x, point in row.items()}, by_sample(n, row)) for n, row in rows]
    return make_candidate(name, runs, samples, levels, groups)


def by_sample(network: Network, row: Row) -> BySample | None:
    """Which test samples a row is of, and noise level -> (N,) whether each is classified correctly.

    From outcomes.parquet; None if it is missing, damaged, or does not agree with the row. Samples are the same if
    their places in the test set and their labels are. (Should other data have these, too, pairing them does no harm.)
    Of samples in groups, which are not independent, each group has one value in place of theirs: its sum, scaled so
    that the mean stays.
    """
    dir, point = network.run.dir, next(iter(row.values()))
    try:
        path = inside(dir.path, dir.outcomes_path)
        found = _read(path, path.stat().st_mtime_ns, point.attack, network.epoch, point.protocol)
    except (ConfigError, OSError, KeyError, ValueError, pa.ArrowException):
        return None
    if found is None:
        return None
    key, index, right = found
    fits = all(
        x in right and right[x].size == p.samples and abs(right[x].mean() - p.share) < 1e-6 for x, p in row.items()
    )
    groups = _test_groups(dir.samples_path)
    if not fits or groups is None:
        return (key, right) if fits else None
    if index.size and index.max() >= groups.size:
        return None
    _, place = np.unique(groups[index], return_inverse=True)
    count = int(place.max()) + 1
    sums = {x: np.bincount(place, values, count) * (count / values.size) for x, values in right.items()}
    return f"{key} by group", sums


def _test_groups(path: Path) -> np.ndarray | None:
    """(N,) a code for the group of each test sample, from samples.parquet; None if they are not known."""
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    return _read_groups(path, stamp)


@functools.lru_cache(maxsize=64)
def _read_groups(path: Path, time: int) -> np.ndarray | None:
    try:
        data = pa.dataset.dataset(str(path), format="parquet")
        if "group" not in data.schema.names:
            return None
        table = data.to_table(columns=["index", "group"], filter=pc.field("split") == "test").sort_by("index")
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    if not table.num_rows or table["group"].null_count == table.num_rows:
        return None
    names = [f"sample {i}" if name is None else f"group {name}" for i, name in enumerate(table["group"].to_pylist())]
    return np.unique(np.array(names), return_inverse=True)[1]


# A page of the dashboard asks again whenever a control is moved.
@functools.lru_cache(maxsize=512)
def _read(
    path: Path, time: int, attack: str, epoch: int, protocol: str
) -> tuple[str, np.ndarray, dict[float, np.ndarray]] | None:
    """What identifies the samples, their indices, and noise level -> whether each is right."""
    # Only the rows that are needed: the file holds every sample at every attack, loss, level and epoch.
    data = pa.dataset.dataset(str(path), format="parquet")
    wanted = (pc.field("attack") == attack) & (pc.field("epoch") == epoch) & (pc.field("loss") == "both")
    if "protocol" in data.schema.names:  # earlier versions kept one
        wanted = wanted & (pc.field("protocol") == protocol)
    table = data.to_table(columns=["index", "noise", "label", "prediction"], filter=wanted)
    index, noise, label, prediction = (column.to_numpy() for column in table.itercolumns())
    right: dict[float, np.ndarray] = {}
    sets: dict[str, np.ndarray] = {}
    for level in np.unique(noise).tolist():
        own = np.flatnonzero(noise == level)
        own = own[np.argsort(index[own])]
        right[noise_key(level)] = label[own] == prediction[own]
        found = hashlib.sha256(np.stack([index[own], label[own]]).astype(np.int64).tobytes()).hexdigest()
        sets[found] = index[own]
    return (*sets.popitem(), right) if len(sets) == 1 else None

"""Per-sample margins: Algorithm 2 and the store that holds its result.

The store is sharded: worker r of W owns the r-th contiguous block of global sample indices. During an
epoch, workers propose new margins for whatever samples they handled. Those of a worker's own samples wait
in its shard; the others wait in its outbox until ``reduce`` sends them to their owners, once an epoch. While
the whole vector is small (``REPLICATE_UP_TO``) every worker also keeps a copy of it, so that a look-up
needs no communication.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ima_dist import distributed

REPLICATE_UP_TO = 1 << 25  # samples: 128 MiB of float32 margins on each worker
_CHUNK = 1 << 20  # proposals that a worker sends to another at once


def update_margins(
    margins: Tensor, distance: Tensor, *, correct: Tensor, crossed: Tensor, expansion: float, eps_max: float
) -> Tensor:
    """Algorithm 2, lines 3 to 14, for a batch.

    Args:
        margins: E(x), (B,).
        distance: ‖x − x_n‖_p, (B,); read only where ``crossed``.
        correct, crossed: (B,) bool, from ``bpgd`` with radius E(x).
        expansion: Δε.
        eps_max: largest allowed margin.

    Returns:
        (B,): Δε where misclassified, the distance where crossed, E + Δε elsewhere; within [Δε, ε_max].
    """
    updated = torch.where(crossed, distance, margins + expansion)
    updated = torch.where(correct, updated, torch.full_like(updated, expansion))
    return updated.clamp(expansion, eps_max)


@dataclass
class Proposals:
    """New margins that await ``reduce``; all (K,), for K distinct global indices."""

    indices: Tensor
    values: Tensor
    correct: Tensor
    crossed: Tensor

    @classmethod
    def none(cls, device: torch.device, dtype: torch.dtype) -> Proposals:
        empty = torch.zeros(0, dtype=torch.bool, device=device)
        return cls(empty.long(), empty.to(dtype), empty, empty)

    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.indices, self.values, self.correct, self.crossed

    def take(self, rows: Tensor) -> Proposals:
        """Those at ``rows``: indices or a mask."""
        return Proposals(*(column[rows] for column in self.columns()))


def _joined(parts: list[Proposals]) -> Proposals:
    return Proposals(*(torch.cat(columns) for columns in zip(*(part.columns() for part in parts), strict=True)))


class MarginStore:
    """Margins of ``num_samples`` samples by global index, sharded over the workers of ``group``.

    Args:
        num_samples: size of the training set.
        initial: every margin's first value (Δε in Algorithm 2).
        group: torch.distributed process group; None is the default group, or one worker without any.
        dtype, device: of the stored values; the collectives run on ``device``.
        replicate: keep a full copy on each worker; default: if num_samples ≤ REPLICATE_UP_TO.

    ``lookup``, ``reduce``, ``save`` and ``load`` are collective: all workers of the group call them together.
    """

    def __init__(
        self,
        num_samples: int,
        initial: float,
        *,
        group: distributed.Group = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        replicate: bool | None = None,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        self.num_samples = num_samples
        self.group = group
        self.rank, self.world = distributed.rank(group), distributed.world_size(group)
        self.first, self.last = distributed.block(num_samples, self.rank, self.world)
        self.device, self.dtype = torch.device(device), dtype
        self.replicated = num_samples <= REPLICATE_UP_TO if replicate is None else replicate
        held = self.last - self.first
        #: Margins of this worker's block ``[first, last)``; not to be written.
        self.shard = torch.full((held,), initial, dtype=dtype, device=self.device)
        self._correct = torch.zeros(held, dtype=torch.bool, device=self.device)
        self._crossed = torch.zeros(held, dtype=torch.bool, device=self.device)
        # With one worker the shard is the copy.
        self._copy = self.shard if self.world == 1 else torch.full((num_samples,), initial, dtype=dtype, device=device)
        if not self.replicated:
            self._copy = self.shard[:0]
        # What was proposed for our own samples. The last row takes what is not ours.
        self._next = torch.zeros(held + 1, dtype=dtype, device=self.device)
        self._flags = torch.zeros(held + 1, dtype=torch.uint8, device=self.device)
        self._count = torch.zeros(held + 1, dtype=torch.uint8, device=self.device)
        self._outbox: list[Proposals] = []

    # ---- reading

    def lookup(self, indices: Tensor) -> Tensor:
        """E(x) for global indices (B,) -> (B,). B may differ between workers.

        Raises:
            IndexError: an index out of range (checked on the CPU only; elsewhere torch asserts).
        """
        self._check_range(indices)
        if self.replicated:
            return self._copy[indices]
        if self.world == 1:
            return self.shard[indices]
        sizes = distributed.gather_objects(len(indices), self.group)
        table = torch.zeros(self.world, max(sizes), dtype=torch.int64, device=self.device)
        table[self.rank, : len(indices)] = indices
        distributed.all_reduce(table, group=self.group)
        slots, mine = self._slots(table)
        found = torch.where(mine, torch.cat([self.shard, self.shard.new_zeros(1)])[slots], 0.0)
        distributed.all_reduce(found, group=self.group)
        return found[self.rank, : len(indices)]

    # ---- writing

    def propose(self, indices: Tensor, values: Tensor, *, correct: Tensor, crossed: Tensor) -> None:
        """Margins (K,) to be taken over by the next ``reduce``; ``correct`` and ``crossed`` (K,) bool.

        Raises:
            IndexError: an index out of range.
            ValueError: shapes that do not fit, or an index proposed already in this epoch. What this worker
                cannot see at once, because another owns the sample or it would stall a device, ``reduce`` finds.
        """
        if not (indices.shape == values.shape == correct.shape == crossed.shape and indices.ndim == 1):
            raise ValueError("indices, values, correct and crossed must be vectors of one length")
        self._check_range(indices)
        given = Proposals(
            indices.to(self.device),
            values.to(self.device, self.dtype),
            correct.to(self.device),
            crossed.to(self.device),
        )
        slots, mine = self._slots(given.indices)
        at_once = self.device.type == "cpu"  # to look at values there is no wait
        if at_once:
            if len(given.indices.unique()) < len(given.indices):
                raise ValueError("an index was proposed twice in one call")
            again = mine & (self._count[slots] > 0)
            if bool(again.any()):
                raise ValueError(f"sample {int(given.indices[again][0])} was proposed twice in one epoch")
        self._settle(given, slots)
        if self.world > 1:
            others = given.take(~mine) if at_once else given
            if len(others.indices):
                self._outbox.append(others)

    def pending(self) -> Proposals:
        """What this worker holds of proposals since the last ``reduce``, each held by one worker."""
        rows = self.proposed.nonzero()[:, 0]
        flags = self._flags[rows]
        own = Proposals(rows + self.first, self._next[rows], flags % 2 > 0, flags > 1)
        return _joined([own, *self._foreign()])

    @property
    def proposed(self) -> Tensor:
        """Which samples of this worker's block it has a proposal for, (last − first,) bool."""
        return self._count[:-1] > 0

    def reduce(self) -> None:
        """Take over all workers' proposals; samples that nobody proposed keep their margin.

        Raises:
            ValueError: an index was proposed twice (one such index is named); all workers raise.
        """
        if self.world > 1:
            self._deliver()
        twice = (self._count[:-1] > 1).nonzero()[:1, 0] + self.first
        named = torch.cat([twice, twice.new_full((1,), -1)])[:1]
        number = int(distributed.all_reduce(named, op="max", group=self.group))
        if number >= 0:
            raise ValueError(f"sample {number} was proposed twice in one epoch")
        given, flags = self.proposed, self._flags[:-1]
        self.shard.copy_(torch.where(given, self._next[:-1], self.shard))
        self._correct.copy_(torch.where(given, flags % 2 > 0, self._correct))
        self._crossed.copy_(torch.where(given, flags > 1, self._crossed))
        self._count.zero_()
        self._outbox = []
        self._share()

    def _slots(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Places in the shard, its length for samples of others; and which are ours."""
        mine = (indices >= self.first) & (indices < self.last)
        return torch.where(mine, indices - self.first, self.last - self.first), mine

    def _settle(self, given: Proposals, slots: Tensor) -> None:
        self._next[slots] = given.values
        self._flags[slots] = given.correct.to(torch.uint8) + 2 * given.crossed.to(torch.uint8)
        self._count.index_add_(0, slots, torch.ones_like(slots, dtype=torch.uint8))

    def _foreign(self) -> list[Proposals]:
        """The outbox without what is ours."""
        return [part.take(~self._slots(part.indices)[1]) for part in self._outbox]

    def _deliver(self) -> None:
        """Send the proposals in all outboxes to the owners, some at a time."""
        out = _joined(self._foreign()) if self._outbox else Proposals.none(self.device, self.dtype)
        # The inverse of distributed.block.
        owner = ((out.indices + 1) * self.world - 1) // self.num_samples
        out, owner = out.take(owner.argsort()), owner.sort().values
        counts = torch.bincount(owner, minlength=self.world)
        starts = counts.cumsum(0) - counts
        most = torch.tensor(int(counts.max()), device=self.device)
        rounds = -(-int(distributed.all_reduce(most, op="max", group=self.group)) // _CHUNK)
        rank_of = torch.arange(len(owner), device=self.device) - starts[owner]
        for number in range(rounds):
            sent = out.take((rank_of >= number * _CHUNK) & (rank_of < (number + 1) * _CHUNK))
            sizes = (counts - number * _CHUNK).clamp(0, _CHUNK)
            got = Proposals(*distributed.exchange([*sent.columns()], sizes, group=self.group))
            self._settle(got, self._slots(got.indices)[0])

    def _share(self) -> None:
        """Bring every worker's copy up to date."""
        if self.replicated and self.world > 1:
            blocks = (distributed.block(self.num_samples, r, self.world) for r in range(self.world))
            sizes = [last - first for first, last in blocks]
            torch.cat(distributed.gather_tensors(self.shard, sizes, group=self.group), out=self._copy)

    def _check_range(self, indices: Tensor) -> None:
        # Elsewhere than on the CPU the look would stall the device; indexing there asserts by itself.
        if indices.device.type == "cpu" and len(indices):
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.num_samples:
                bad = low if low < 0 else high
                raise IndexError(f"sample index {bad} is out of range for {self.num_samples} samples")

    # ---- statistics

    def histogram(self, bins: int, high: float) -> Tensor:
        """Counts of all margins in ``bins`` equal bins over [0, high], (bins,) int64, over all workers."""
        at = (self.shard * (bins / high)).long().clamp(0, bins - 1)
        return distributed.all_reduce(torch.bincount(at, minlength=bins), group=self.group)

    def mean(self) -> float:
        """Mean of all margins, over all workers."""
        return float(distributed.all_reduce(self.shard.double().sum(), group=self.group)) / self.num_samples

    def share_at(self, level: float) -> float:
        """Share of all margins that are at least ``level``."""
        return float(distributed.all_reduce((self.shard >= level).sum(), group=self.group)) / self.num_samples

    def quantiles(self, high: float, bins: int = 10_000) -> list[float]:
        """The 0, 10, … 100 % quantiles of all margins, exact to ``high / bins``, over all workers."""
        below = self.histogram(bins, high).cumsum(0)
        wanted = torch.linspace(0, 1, 11, device=below.device, dtype=torch.float64) * self.num_samples
        at = torch.searchsorted(below, wanted.clamp(min=1).ceil().long())
        return [(int(i) + 0.5) * high / bins for i in at]

    # ---- files

    def save(self, directory: str | Path, labels: Tensor | None = None) -> list[str]:
        """Write this worker's shard as ``shard-RRRR-of-WWWW.parquet``; returns all workers' file names.

        Columns: index int64, margin, label int64 (−1 if ``labels`` (num_samples,) is not given), correct
        and crossed bool. The directory is made. Moving it into place is the caller's business.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        index = np.arange(self.first, self.last)
        label = np.full(len(index), -1) if labels is None else labels[self.first : self.last].cpu().numpy()
        table = pa.table(
            {
                "index": index,
                "margin": self.shard.cpu().numpy(),
                "label": label.astype(np.int64),
                "correct": self._correct.cpu().numpy(),
                "crossed": self._crossed.cpu().numpy(),
            }
        )
        name = f"shard-{self.rank:04d}-of-{self.world:04d}.parquet"
        pq.write_table(table, directory / name)
        return distributed.gather_objects(name, self.group)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        group: distributed.Group = None,
        *,
        device: torch.device | str = "cpu",
        replicate: bool | None = None,
    ) -> MarginStore:
        """The store that any number of workers saved in ``directory``.

        Raises:
            FileNotFoundError: no shards there, or fewer than their names say.
            ValueError: a shard that cannot be read, or indices missing or held twice; it is named.
        """
        files = sorted(Path(directory).glob("shard-*-of-*.parquet"))
        if not files:
            raise FileNotFoundError(f"{directory} holds no margin shards")
        expected = int(files[0].stem.rsplit("-", 1)[1])
        if len(files) != expected:
            raise FileNotFoundError(f"{directory} holds {len(files)} of {expected} margin shards")
        sizes = [_read(file, metadata=True) for file in files]
        total = sum(sizes)
        dtype = torch.from_numpy(_read(files[0])["margin"][:0].copy()).dtype
        store = cls(total, 0.0, group=group, dtype=dtype, device=device, replicate=replicate)
        filled = 0
        for file, size, start in zip(files, sizes, np.cumsum([0, *sizes[:-1]]), strict=True):
            # Shards are blocks in order, so one whose rows lie outside this worker's need not be read.
            if size == 0 or start >= store.last or start + size <= store.first:
                continue
            columns = _read(file)
            if not np.array_equal(columns["index"], np.arange(start, start + size)):
                raise ValueError(f"{file} does not hold the samples {start} to {start + size - 1} in order")
            part = slice(max(store.first - start, 0), min(store.last - start, size))
            held = slice(int(start + part.start - store.first), int(start + part.stop - store.first))
            for target, name in ((store.shard, "margin"), (store._correct, "correct"), (store._crossed, "crossed")):
                target[held] = torch.from_numpy(columns[name][part].copy()).to(store.device)
            filled += part.stop - part.start
        if filled != len(store.shard):
            raise ValueError(f"{directory} lacks margins of {len(store.shard) - filled} samples")
        store._share()
        return store


def _read(file: Path, metadata: bool = False) -> Any:
    """Columns of a shard as arrays, or its number of rows. ValueError naming the file if it is damaged."""
    try:
        if metadata:
            return pq.read_metadata(file).num_rows
        # Not read_table: it would take a parent directory called epoch=0001 for a column.
        with pq.ParquetFile(file) as opened:
            table = opened.read()
        return {name: table[name].to_numpy() for name in ("index", "margin", "correct", "crossed")}
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{file} is damaged: {error}") from error

"""Per-sample margins: Algorithm 2 and the store that holds its result.

The store is sharded: worker r of W owns the r-th contiguous block of global sample indices. During an
epoch, workers propose new margins for whatever samples they handled; ``reduce`` brings every proposal
to its owner, once an epoch, through all-reduces of bounded size. While the whole vector is small
(``REPLICATE_UP_TO``) every worker also keeps a copy of it, so that a look-up needs no communication.
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
_CHUNK = 1 << 20  # samples in one all-reduce of ``reduce``


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
        # The shard is a view of the copy where there is one, so that no value exists twice.
        held = num_samples if self.replicated else self.last - self.first
        self._values = torch.full((held,), initial, dtype=dtype, device=self.device)
        self._correct = torch.zeros(held, dtype=torch.bool, device=self.device)
        self._crossed = torch.zeros(held, dtype=torch.bool, device=self.device)
        self._offset = 0 if self.replicated else self.first
        self._proposed = torch.zeros(num_samples if self.replicated else 0, dtype=torch.bool, device=self.device)
        self._seen: set[int] = set()
        self._pending: list[Proposals] = []

    # ---- reading

    @property
    def shard(self) -> Tensor:
        """Margins of this worker's block ``[first, last)``; a view, not to be written."""
        return self._values[self.first - self._offset : self.last - self._offset]

    def lookup(self, indices: Tensor) -> Tensor:
        """E(x) for global indices (B,) -> (B,). B may differ between workers.

        Raises:
            IndexError: an index out of range (checked on the CPU only; elsewhere torch asserts).
        """
        self._check_range(indices)
        if self.replicated:
            return self._values[indices]
        sizes = distributed.gather_objects(len(indices), self.group)
        table = torch.zeros(self.world, max(sizes), dtype=torch.int64, device=self.device)
        table[self.rank, : len(indices)] = indices
        distributed.all_reduce(table, group=self.group)
        mine = (table >= self.first) & (table < self.last)
        found = torch.where(mine, self._values[(table - self.first).clamp(0, max(len(self._values) - 1, 0))], 0.0)
        distributed.all_reduce(found, group=self.group)
        return found[self.rank, : len(indices)]

    # ---- writing

    def propose(self, indices: Tensor, values: Tensor, *, correct: Tensor, crossed: Tensor) -> None:
        """Margins (K,) to be taken over by the next ``reduce``; ``correct`` and ``crossed`` (K,) bool.

        Raises:
            IndexError: an index out of range.
            ValueError: shapes that do not fit, or an index that this worker has proposed already in this
                epoch. An index that two workers proposed is found by ``reduce``.
        """
        if not (indices.shape == values.shape == correct.shape == crossed.shape and indices.ndim == 1):
            raise ValueError("indices, values, correct and crossed must be vectors of one length")
        self._check_range(indices)
        self._check_new(indices)
        self._pending.append(
            Proposals(
                indices.to(self.device),
                values.to(self.device, self.dtype),
                correct.to(self.device),
                crossed.to(self.device),
            )
        )

    def pending(self) -> Proposals:
        """This worker's proposals since the last ``reduce``."""
        if not self._pending:
            none = torch.zeros(0, dtype=torch.bool, device=self.device)
            return Proposals(none.long(), none.to(self.dtype), none, none)
        joined = Proposals(
            *(
                torch.cat([getattr(p, name) for p in self._pending])
                for name in ("indices", "values", "correct", "crossed")
            )
        )
        self._pending = [joined]
        return joined

    def reduce(self) -> None:
        """Take over all workers' proposals; samples that nobody proposed keep their margin.

        Every sample is proposed at most once, so the sums below have one term and are exact.

        Raises:
            ValueError: two workers proposed the same index (the first such index is named).
        """
        mine = self.pending()
        order = mine.indices.argsort()
        indices, values = mine.indices[order], mine.values[order]
        flags = 1 + 16 * mine.correct[order].to(self.dtype) + 256 * mine.crossed[order].to(self.dtype)
        counts = torch.bincount(indices // _CHUNK, minlength=-(-self.num_samples // _CHUNK)).tolist()
        at = 0
        for number, count in enumerate(counts):
            low = number * _CHUNK
            high = min(low + _CHUNK, self.num_samples)
            buffer = torch.zeros(2, high - low, dtype=self.dtype, device=self.device)
            here = indices[at : at + count] - low
            # index_add_ and not assignment: an index proposed twice must show in the count.
            buffer[0].index_add_(0, here, values[at : at + count])
            buffer[1].index_add_(0, here, flags[at : at + count])
            at += count
            distributed.all_reduce(buffer, group=self.group)
            self._take_over(buffer, low, high)
        self._pending, self._seen = [], set()
        self._proposed.zero_()

    def _take_over(self, buffer: Tensor, low: int, high: int) -> None:
        flags = buffer[1].to(torch.int64)
        if bool((flags % 16 > 1).any()):
            twice = low + int((flags % 16 > 1).nonzero()[0, 0])
            raise ValueError(f"sample {twice} was proposed twice in one epoch")
        start, stop = max(low, self._offset), min(high, self._offset + len(self._values))
        if start >= stop:
            return
        part, held = slice(start - low, stop - low), slice(start - self._offset, stop - self._offset)
        given = flags[part] > 0
        self._values[held] = torch.where(given, buffer[0, part], self._values[held])
        self._correct[held] = torch.where(given, flags[part] // 16 % 16 > 0, self._correct[held])
        self._crossed[held] = torch.where(given, flags[part] // 256 > 0, self._crossed[held])

    def _check_range(self, indices: Tensor) -> None:
        # Elsewhere than on the CPU the look would stall the device; indexing there asserts by itself.
        if indices.device.type == "cpu" and len(indices):
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.num_samples:
                bad = low if low < 0 else high
                raise IndexError(f"sample index {bad} is out of range for {self.num_samples} samples")

    def _check_new(self, indices: Tensor) -> None:
        if indices.device.type != "cpu" and self.device.type != "cpu":
            return  # found by ``reduce``, without a stall here
        if len(indices.unique()) < len(indices):
            raise ValueError("an index was proposed twice in one call")
        if self.replicated:
            again = self._proposed[indices]
            if bool(again.any()):
                raise ValueError(f"sample {int(indices[again][0])} was proposed twice in one epoch")
            self._proposed[indices] = True
        else:
            new = set(indices.tolist())
            if self._seen & new:
                raise ValueError(f"sample {min(self._seen & new)} was proposed twice in one epoch")
            self._seen |= new

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
        held = slice(self.first - self._offset, self.last - self._offset)
        index = np.arange(self.first, self.last)
        label = np.full(len(index), -1) if labels is None else labels[self.first : self.last].cpu().numpy()
        table = pa.table(
            {
                "index": index,
                "margin": self._values[held].cpu().numpy(),
                "label": label.astype(np.int64),
                "correct": self._correct[held].cpu().numpy(),
                "crossed": self._crossed[held].cpu().numpy(),
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
        low, high = store._offset, store._offset + len(store._values)
        filled = 0
        for file, size, start in zip(files, sizes, np.cumsum([0, *sizes[:-1]]), strict=True):
            # Shards are blocks in order, so one whose rows lie outside this worker's need not be read.
            if size == 0 or start >= high or start + size <= low:
                continue
            columns = _read(file)
            if not np.array_equal(columns["index"], np.arange(start, start + size)):
                raise ValueError(f"{file} does not hold the samples {start} to {start + size - 1} in order")
            part = slice(max(low - start, 0), min(high - start, size))
            held = slice(int(start + part.start - low), int(start + part.stop - low))
            store._values[held] = torch.from_numpy(columns["margin"][part].copy()).to(store.device)
            store._correct[held] = torch.from_numpy(columns["correct"][part].copy()).to(store.device)
            store._crossed[held] = torch.from_numpy(columns["crossed"][part].copy()).to(store.device)
            filled += part.stop - part.start
        if filled != len(store._values):
            raise ValueError(f"{directory} lacks margins of {len(store._values) - filled} samples")
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

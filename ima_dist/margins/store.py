"""Per-sample margins: Algorithm 2 and the store that holds its result.

The store is sharded: worker r of W owns the r-th contiguous block of global sample indices. During an epoch, workers
propose new margins for the samples that they handle. Proposals for a worker's own samples wait beside its shard, the
others in its outbox until they are sent to their owners; at the end of the epoch ``reduce`` applies all of them. If
the whole vector is small (``REPLICATE_UP_TO``) every worker also keeps a copy of it, so that a look-up needs no
communication. Otherwise a worker holds its shard, the proposals for it, and buffers whose size does not depend on
the number of samples.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ima_dist.core import distributed
from ima_dist.margins import snapshots
from ima_dist.margins.update import Proposals, joined

REPLICATE_UP_TO = 1 << 25  # samples: 128 MiB of float32 margins per worker
_CHUNK = 1 << 20  # proposals that a worker sends to another at once, and samples updated at once
# Look-ups after which a store that is not replicated empties its outboxes. All workers count the same look-ups.
_DELIVER_EVERY = 64


class MarginStore:
    """Margins of ``num_samples`` samples by global index, sharded over the workers of ``group``.

    Args:
        num_samples: size of the training set.
        initial: every margin's first value (Δε in Algorithm 2).
        group: torch.distributed process group; None for the default group, or for one worker without any.
        dtype, device: of the stored values; the collectives run on ``device``.
        replicate: keep a full copy on each worker; default: if num_samples ≤ REPLICATE_UP_TO.

    ``lookup``, ``reduce``, ``save``, ``load`` and the statistics are collective: all workers of the group call them
    together.
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
        #: Margins of this worker's block ``[first, last)``; read-only.
        self.shard = torch.full((held,), initial, dtype=dtype, device=self.device)
        self._correct = torch.zeros(held, dtype=torch.bool, device=self.device)
        self._crossed = torch.zeros(held, dtype=torch.bool, device=self.device)
        # With one worker the shard is the copy.
        self._copy = self.shard if self.world == 1 else torch.full((num_samples,), initial, dtype=dtype, device=device)
        if not self.replicated:
            self._copy = self.shard[:0]
        # Proposals for this worker's samples. The last row takes those for other samples.
        self._next = torch.zeros(held + 1, dtype=dtype, device=self.device)
        self._flags = torch.zeros(held + 1, dtype=torch.uint8, device=self.device)
        self._count = torch.zeros(held + 1, dtype=torch.uint8, device=self.device)
        self._outbox: list[Proposals] = []
        self._lookups = 0

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
        order, counts = self._by_owner(indices)
        asked, arriving = distributed.exchange([indices[order]], counts, group=self.group)
        answers = self.shard[asked[0] - self.first]
        (values,), _ = distributed.exchange([answers], arriving, group=self.group)
        found = torch.empty_like(values)
        found[order] = values
        self._lookups += 1
        if self._lookups % _DELIVER_EVERY == 0:
            self._deliver()
        return found

    # ---- writing

    def propose(self, indices: Tensor, values: Tensor, *, correct: Tensor, crossed: Tensor) -> None:
        """Margins (K,) that the next ``reduce`` applies; ``correct`` and ``crossed`` (K,) bool.

        Raises:
            IndexError: an index out of range.
            ValueError: shapes that do not fit, or an index already proposed in this epoch. Duplicates that this
                worker cannot see, because another owns the sample or a check would force a sync, ``reduce`` finds.
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
        at_once = self.device.type == "cpu"  # reading values there forces no sync
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
        """The proposals since the last ``reduce`` that this worker holds; each is held by one worker."""
        rows = self.proposed.nonzero()[:, 0]
        flags = self._flags[rows]
        own = Proposals(rows + self.first, self._next[rows], flags % 2 > 0, flags > 1)
        return joined([own, *self._foreign()])

    @property
    def proposed(self) -> Tensor:
        """Mask of the samples in this worker's block that it has a proposal for, (last − first,) bool."""
        return self._count[:-1] > 0

    def reduce(self) -> None:
        """Apply all workers' proposals; samples without one keep their margin.

        Raises:
            ValueError: an index was proposed twice (one such index is named); all workers raise.
            RuntimeError: the process group has been closed since the store was made.
        """
        if distributed.world_size(self.group) != self.world:
            # In a loop of the user's, too, this worker's part must not be taken for the whole.
            raise RuntimeError(f"the process group of the margins' {self.world} workers was closed")
        if self.world > 1:
            self._deliver()
        twice = (self._count[:-1] > 1).nonzero()[:1, 0] + self.first
        named = torch.cat([twice, twice.new_full((1,), -1)])[:1]
        number = int(distributed.all_reduce(named, op="max", group=self.group))
        if number >= 0:
            raise ValueError(f"sample {number} was proposed twice in one epoch")
        for start in range(0, len(self.shard), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(self.shard)))
            given, flags = self._count[part] > 0, self._flags[part]
            self.shard[part] = torch.where(given, self._next[part], self.shard[part])
            self._correct[part] = torch.where(given, flags % 2 > 0, self._correct[part])
            self._crossed[part] = torch.where(given, flags > 1, self._crossed[part])
        self._count.zero_()
        self._share()

    def _by_owner(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """An order of ``indices`` by the worker that owns them, and how many each worker owns."""
        # The inverse of distributed.block.
        owner = ((indices + 1) * self.world - 1) // self.num_samples
        return owner.argsort(), torch.bincount(owner, minlength=self.world)

    def _slots(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Rows in the shard (its length for samples of other workers), and a mask of this worker's samples."""
        if self.world == 1:
            return indices, torch.ones_like(indices, dtype=torch.bool)
        mine = (indices >= self.first) & (indices < self.last)
        return torch.where(mine, indices - self.first, self.last - self.first), mine

    def _settle(self, given: Proposals, slots: Tensor) -> None:
        self._next[slots] = given.values
        self._flags[slots] = torch.add(given.correct.to(torch.uint8), given.crossed, alpha=2)
        self._count.index_add_(0, slots, torch.ones_like(slots, dtype=torch.uint8))

    def _foreign(self) -> list[Proposals]:
        """The proposals in the outbox for samples of other workers."""
        return [part.take(~self._slots(part.indices)[1]) for part in self._outbox]

    def _deliver(self) -> None:
        """Send the proposals in all outboxes to their owners, a bounded number at a time. Collective."""
        out = joined(self._foreign()) if self._outbox else Proposals.none(self.device, self.dtype)
        self._outbox = []
        order, counts = self._by_owner(out.indices)
        out = out.take(order)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(order), device=self.device) - starts.repeat_interleave(counts)
        most = torch.tensor(int(counts.max()), device=self.device)
        rounds = -(-int(distributed.all_reduce(most, op="max", group=self.group)) // _CHUNK)
        for number in range(rounds):
            sent = out.take((place >= number * _CHUNK) & (place < (number + 1) * _CHUNK))
            sizes = (counts - number * _CHUNK).clamp(0, _CHUNK)
            got = Proposals(*distributed.exchange(list(sent), sizes, group=self.group)[0])
            self._settle(got, self._slots(got.indices)[0])

    def restore(self, margins: Tensor) -> None:
        """Set all margins, (num_samples,) by global index, and drop all proposals. Collective."""
        self.shard.copy_(margins[self.first : self.last])
        self._count.zero_()
        self._outbox = []
        self._share()

    def _share(self) -> None:
        """Bring every worker's copy up to date."""
        if self.replicated and self.world > 1:
            blocks = (distributed.block(self.num_samples, r, self.world) for r in range(self.world))
            sizes = [last - first for first, last in blocks]
            torch.cat(distributed.gather_tensors(self.shard, sizes, group=self.group), out=self._copy)

    def _check_range(self, indices: Tensor) -> None:
        # On a GPU this check would force a sync, and indexing asserts by itself.
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

    def largest(self) -> float:
        """The largest of all margins, over all workers."""
        own = torch.cat([self.shard, self.shard.new_zeros(1)]).max()
        return float(distributed.all_reduce(own, op="max", group=self.group))

    def share_at(self, level: float) -> float:
        """Share of all margins that are at least ``level``."""
        return float(distributed.all_reduce((self.shard >= level).sum(), group=self.group)) / self.num_samples

    def uncrossed(self) -> int:
        """How many samples were classified correctly and did not cross, by their newest proposals."""
        return int(distributed.all_reduce((self._correct & ~self._crossed).sum(), group=self.group))

    def quantiles(self, high: float, bins: int = 10_000) -> list[float]:
        """The 0, 10, … 100 % quantiles of all margins, exact to ``high / bins``, over all workers."""
        below = self.histogram(bins, high).cumsum(0)
        wanted = torch.linspace(0, 1, 11, device=below.device, dtype=torch.float64) * self.num_samples
        at = torch.searchsorted(below, wanted.clamp(min=1).ceil().long())
        return [(int(i) + 0.5) * high / bins for i in at]

    # ---- files

    def save(
        self, directory: str | Path, labels: Tensor | None = None, configuration: str | None = None
    ) -> dict[str, str]:
        """Write a snapshot (``snapshots``): every worker its shard, then worker 0 the manifest.

        Columns: index int64, margin, label int64 (−1 if ``labels`` (num_samples,) is not given), correct
        and crossed bool. configuration: a fingerprint for the manifest. The directory is created; the caller moves
        it into place.

        Returns, on all workers, the SHA-256 of every file of the snapshot by name. Raises OSError on the worker
        where writing failed.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)

        def columns(start: int, stop: int) -> snapshots.Columns:
            part = slice(start - self.first, stop - self.first)
            label = np.full(stop - start, -1) if labels is None else labels[start:stop].cpu().numpy()
            return {
                "margin": self.shard[part].cpu().numpy(),
                "label": label.astype(np.int64),
                "correct": self._correct[part].cpu().numpy(),
                "crossed": self._crossed[part].cpu().numpy(),
            }

        mine = snapshots.write_shard(directory, self.rank, self.world, self.first, self.last, columns)
        shards = distributed.gather_objects(mine, self.group)
        manifest = snapshots.Manifest(tuple(shards), configuration)
        if self.rank == 0:
            snapshots.write_manifest(directory, manifest)
        of_manifest = hashlib.sha256(manifest.text.encode()).hexdigest()
        return {snapshots.MANIFEST: of_manifest, **{shard.file: shard.sha256 for shard in shards}}

    @classmethod
    def load(
        cls,
        directory: str | Path,
        group: distributed.Group = None,
        *,
        device: torch.device | str = "cpu",
        replicate: bool | None = None,
    ) -> MarginStore:
        """The store that any number of workers saved in ``directory``; each worker reads the block that it will own.

        Raises:
            FileNotFoundError: there is no whole snapshot.
            ValueError: a file of it is damaged; it is named.
        """
        directory = Path(directory)
        manifest = snapshots.read_manifest(directory)
        _, columns = next(snapshots.read_rows(directory, manifest, 0, 1))
        dtype = torch.from_numpy(columns["margin"].copy()).dtype
        store = cls(manifest.samples, 0.0, group=group, dtype=dtype, device=device, replicate=replicate)
        targets = ((store.shard, "margin"), (store._correct, "correct"), (store._crossed, "crossed"))
        for start, columns in snapshots.read_rows(directory, manifest, store.first, store.last):
            held = slice(start - store.first, start - store.first + len(columns["index"]))
            for target, name in targets:
                target[held] = torch.from_numpy(columns[name].copy()).to(store.device)
        store._share()
        return store

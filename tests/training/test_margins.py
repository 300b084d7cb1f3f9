"""Algorithm 2 and the margin store."""

from __future__ import annotations

import hashlib
import json

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from ima_dist.attacks import bpgd
from ima_dist.core import distributed, norms
from ima_dist.margins import snapshots
from ima_dist.margins import store as store_module
from ima_dist.margins.store import MarginStore
from ima_dist.margins.update import update_margins
from tests.support import workers


def test_update_margins_by_hand():
    # Rows: wrong; crossed; not crossed; crossed closer than the step; expanded beyond the maximum.
    new = update_margins(
        torch.tensor([0.30, 0.30, 0.30, 0.30, 0.45]),
        torch.tensor([0.00, 0.12, 0.00, 0.01, 0.00]),
        correct=torch.tensor([False, True, True, True, True]),
        crossed=torch.tensor([False, True, False, True, False]),
        expansion=0.1,
        eps_max=0.5,
    )
    assert torch.allclose(new, torch.tensor([0.1, 0.12, 0.4, 0.1, 0.5]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_algorithm_2_finds_the_distance_to_a_linear_boundary(norm):
    """On a frozen linear classifier each margin ends within [d, d + Δε], d being known in closed form."""
    torch.manual_seed(0)
    network = nn.Linear(20, 2).double()
    x = torch.randn(400, 20, dtype=torch.float64)
    y = network(x).argmax(1)  # all correctly classified
    w = (network.weight[1] - network.weight[0]).detach()
    logits = network(x).detach()
    dual = w.abs().sum() if norm == "linf" else w.norm()
    distance = (logits[:, 1] - logits[:, 0]).abs() / dual
    expansion = 0.02 if norm == "linf" else 0.1
    eps_max = float(distance.max()) + 2 * expansion
    estimate = torch.full((400,), expansion, dtype=torch.float64)
    settled = torch.zeros(400, dtype=torch.bool)
    for _ in range(int(eps_max / expansion) + 3):
        found = bpgd(network, x, y, estimate, norm=norm)
        estimate = update_margins(
            estimate,
            norms.length(found.x - x, norm),
            correct=found.correct,
            crossed=found.crossed,
            expansion=expansion,
            eps_max=eps_max,
        )
        settled |= found.crossed
    assert settled.all()
    # Bisection ends within 2⁻¹⁰ of a bracket one step long on either side of the boundary.
    slack = 1e-3 * eps_max
    reachable = distance.clamp(min=expansion)
    assert (estimate >= reachable - slack).all(), float((reachable - estimate).max())
    assert (estimate <= distance + expansion + slack).all(), float((estimate - distance).max())


def proposal(store, indices, values, correct=True, crossed=False):
    indices = torch.as_tensor(indices)
    flags = torch.ones(len(indices), dtype=torch.bool)
    store.propose(indices, torch.as_tensor(values, dtype=store.dtype), correct=flags & correct, crossed=flags & crossed)


@pytest.mark.parametrize("replicate", [True, False])
def test_reduce_takes_over_what_was_proposed_and_nothing_else(replicate):
    store = MarginStore(10, 0.5, replicate=replicate)
    proposal(store, [3, 1], [0.3, 0.1], crossed=True)
    assert torch.equal(store.lookup(torch.arange(10)), torch.full((10,), 0.5))
    store.reduce()
    expected = torch.full((10,), 0.5)
    expected[3], expected[1] = 0.3, 0.1
    assert torch.equal(store.lookup(torch.arange(10)), expected)
    store.reduce()
    assert torch.equal(store.lookup(torch.tensor([3, 0])), torch.tensor([0.3, 0.5]))
    proposal(store, [3], [0.7])  # a new epoch, so the same index again
    store.reduce()
    assert float(store.lookup(torch.tensor([3]))) == pytest.approx(0.7)


@pytest.mark.parametrize("replicate", [True, False])
def test_an_index_proposed_twice_or_out_of_range_is_an_error(replicate):
    store = MarginStore(10, 0.5, replicate=replicate)
    proposal(store, [3], [0.3])
    with pytest.raises(ValueError, match="sample 3 was proposed twice"):
        proposal(store, [4, 3], [0.3, 0.1])
    with pytest.raises(ValueError, match="twice"):
        proposal(store, [5, 5], [0.3, 0.1])
    with pytest.raises(IndexError, match="10 is out of range"):
        proposal(store, [10], [0.1])
    with pytest.raises(IndexError, match="-1 is out of range"):
        store.lookup(torch.tensor([-1]))
    with pytest.raises(ValueError, match="one length"):
        proposal(store, [1, 2], [0.1])
    store.reduce()
    assert float(store.lookup(torch.tensor([3]))) == pytest.approx(0.3)


def collective_checks(directory, replicate):
    """On 3 workers: look-ups from any owner, proposals to any owner, a duplicate between workers."""
    rank = distributed.rank()
    store = MarginStore(11, 0.5, replicate=replicate, dtype=torch.float64)
    proposal(store, [rank, rank + 4], [rank + 0.25, rank + 0.75], crossed=rank == 1)
    store.reduce()
    expected = torch.full((11,), 0.5, dtype=torch.float64)
    for r in range(3):
        expected[r], expected[r + 4] = r + 0.25, r + 0.75
    asked = torch.arange(11)[: 11 - 3 * rank].flip(0)  # different numbers of indices on each worker
    assert torch.equal(store.lookup(asked), expected[asked])
    assert store.mean() == pytest.approx(float(expected.mean()))
    assert int(store.histogram(4, 4.0).sum()) == 11
    names = store.save(directory, labels=torch.arange(11) % 2, configuration="abc")
    distributed.barrier()
    assert names == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}
    if rank < 2:
        proposal(store, [7], [0.1])
    with pytest.raises(ValueError, match="sample 7 was proposed twice"):
        store.reduce()


@pytest.mark.parametrize("replicate", [True, False])
def test_store_on_three_workers_is_read_by_one_and_two(tmp_path, replicate):
    workers.run_on(3, collective_checks, tmp_path / "margins", replicate)
    files = sorted(p.name for p in (tmp_path / "margins").glob("*.parquet"))
    assert files == [f"shard-{r:04d}-of-0003.parquet" for r in range(3)]
    manifest = json.loads((tmp_path / "margins" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["configuration"]) == (11, "abc")
    assert [(s["file"], s["first"], s["rows"]) for s in manifest["shards"]] == [
        (files[0], 0, 3), (files[1], 3, 4), (files[2], 7, 4),
    ]  # fmt: skip
    table = pq.ParquetFile(tmp_path / "margins" / files[1]).read()
    assert table.column_names == ["index", "margin", "label", "correct", "crossed"]
    assert table["index"].to_pylist() == [3, 4, 5, 6]
    assert table["label"].to_pylist() == [1, 0, 1, 0]
    assert table["margin"].to_pylist() == [0.5, 0.75, 1.75, 2.75]
    assert table["crossed"].to_pylist() == [False, False, True, False]
    for replicate_again in (True, False):
        whole = MarginStore.load(tmp_path / "margins", replicate=replicate_again)
        assert float(whole.lookup(torch.tensor([6]))) == 2.75
        assert whole.dtype == torch.float64
    workers.run_on(2, loaded_on_two, tmp_path / "margins", replicate)


def loaded_on_two(directory, replicate):
    store = MarginStore.load(directory, replicate=replicate)
    assert (store.first, store.last) == ((0, 5) if distributed.rank() == 0 else (5, 11))
    assert store.lookup(torch.tensor([6, 5, 2])).tolist() == [2.75, 1.75, 2.25]


def test_damaged_and_missing_files_are_named(tmp_path):
    directory = tmp_path / "m"
    MarginStore(8, 0.5).save(directory)
    (file,) = directory.glob("shard-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"shard-0000-of-0001\.parquet is damaged"):
        MarginStore.load(directory)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-0000-of-0001\.parquet is missing"):
        MarginStore.load(directory)
    file.write_bytes(whole)
    assert MarginStore.load(directory).num_samples == 8
    manifest = directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows": 8', '"rows": 7'))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        MarginStore.load(directory)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="no whole snapshot"):
        MarginStore.load(directory)
    with pytest.raises(FileNotFoundError, match="no whole snapshot"):
        MarginStore.load(tmp_path / "none")


def test_a_flipped_bit_is_noticed_by_whoever_reads_the_shard(tmp_path):
    store = MarginStore(5000, 0.5)
    proposal(store, range(5000), torch.rand(5000))
    store.reduce()
    store.save(tmp_path)
    (file,) = tmp_path.glob("shard-*")
    whole = file.read_bytes()
    for place in range(200, len(whole) - 3000, 1777):  # the pages; the footer is at the end
        data = bytearray(whole)
        data[place] ^= 0x10
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"shard-0000-of-0001\.parquet"):
            MarginStore.load(tmp_path)


def in_many_pieces(directory):
    """A store whose pieces are far smaller than its shards, saved by three workers."""
    snapshots.ROWS, store_module._CHUNK, store_module._DELIVER_EVERY = 4, 3, 2
    store = MarginStore(101, 0.5, replicate=False, dtype=torch.float64)
    rank = distributed.rank()
    for part in torch.arange(101)[rank::3].split(5):
        assert torch.equal(store.lookup(part), torch.full((len(part),), 0.5, dtype=torch.float64))
        proposal(store, part, part.double())
        assert sum(len(waiting.indices) for waiting in store._outbox) <= 10  # two look-ups' worth
    for _ in range(7 - len(torch.arange(101)[rank::3].split(5))):
        store.lookup(torch.arange(0))
    store.reduce()
    store.save(directory)


def test_pieces_smaller_than_a_shard(tmp_path, monkeypatch):
    workers.run_on(3, in_many_pieces, tmp_path)
    monkeypatch.setattr(snapshots, "ROWS", 4)
    assert torch.equal(MarginStore.load(tmp_path).shard, torch.arange(101).double())
    part = snapshots.read_rows(tmp_path, snapshots.read_manifest(tmp_path), 30, 70)
    read = [value for _, columns in part for value in columns["margin"].tolist()]
    assert read == list(range(30, 70))


def test_statistics_by_hand():
    store = MarginStore(4, 0.1, dtype=torch.float64)
    proposal(store, [0, 1], [0.3, 0.2])
    store.reduce()
    assert store.mean() == pytest.approx(0.175)
    assert store.share_at(0.2) == 0.5
    assert store.histogram(3, 0.3).tolist() == [0, 2, 2]  # 0.1·3/0.3 = 1, 0.2 -> 2, the top bin closed
    assert store.quantiles(0.3)[0] == pytest.approx(0.1, abs=1e-4)
    assert store.quantiles(0.3)[-1] == pytest.approx(0.3, abs=1e-4)


def random_proposals(directory, replicate):
    """Each of 101 samples proposed by a worker drawn at random, in many small rounds, twice over."""
    store_module._CHUNK = 3
    rank = distributed.rank()
    generator = torch.Generator().manual_seed(5)
    store = MarginStore(101, 0.5, replicate=replicate)
    for epoch in range(2):
        by = torch.randint(0, 4, (101,), generator=generator)  # worker 3 does not exist: nobody proposes these
        new = torch.rand(101, generator=generator)
        flags = torch.rand(2, 101, generator=generator) < 0.5
        before = store.lookup(torch.arange(101)).clone()
        mine = (by == rank).nonzero()[:, 0]
        for part in mine[torch.randperm(len(mine))].split(7):
            store.propose(part, new[part], correct=flags[0, part], crossed=flags[1, part])
        waiting = store.pending()
        assert sorted(waiting.indices.tolist()) == mine.tolist()
        assert torch.equal(waiting.values, new[waiting.indices])
        assert torch.equal(waiting.crossed, flags[1][waiting.indices])
        assert store.proposed.tolist() == (by[store.first : store.last] == rank).tolist()
        store.reduce()
        assert not len(store.pending().indices)
        expected = torch.where(by < 3, new, before)
        assert torch.equal(store.lookup(torch.arange(101)), expected)
        store.save(directory / str(epoch))
    columns = pq.ParquetFile(directory / "1" / f"shard-{rank:04d}-of-0003.parquet").read().to_pydict()
    given = (by < 3)[store.first : store.last]
    assert torch.equal(torch.tensor(columns["correct"])[given], flags[0, store.first : store.last][given])


@pytest.mark.parametrize("replicate", [True, False])
def test_proposals_find_their_owners(tmp_path, replicate):
    workers.run_on(3, random_proposals, tmp_path, replicate)

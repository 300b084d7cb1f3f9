"""The cost model of docs/scaling.md, by hand."""

from __future__ import annotations

import pytest

from benchmarks import scaling
from ima_dist.config.presets import make_config


def test_passes_of_a_sample_by_hand():
    # 20 steps of two passes and a last look, ten bisections for half the samples; an update of 1.5 samples.
    paper = make_config("moons")
    assert scaling.passes(paper, crossed=0.5) == (46 + 4.5, 46)
    online = make_config("moons", {"margin_update": "online"})
    assert scaling.passes(online, crossed=0.5) == (46 + 4.5, 0)


def test_operations_of_a_network_are_counted():
    network = scaling.count("cifar10")
    assert network.parameters == 5_849_050
    # The three groups of WRN-28-4, two operations a multiplication, convolutions of 3×3 alone: 9 layers of k
    # channels at side s cost about 8·k²·9·s² each; the first of a group has fewer channels or a larger side.
    about = 2 * sum(8 * k * k * 9 * s * s for k, s in ((64, 32), (128, 16), (256, 8)))
    assert network.flops == pytest.approx(about, rel=0.1)


def test_the_store_is_extrapolated_in_proportion_to_the_shards():
    measured = {
        "samples": 2_000_000,
        "workers": 2,
        "own": {"peak_memory_of_a_worker": 12e6, "reduce": 0.5, "save": 1.0},
        "scattered": {"bytes_sent_by_a_worker": 13e6},
        "load_on_one_worker": {"bytes_on_disk": 10e6},
    }
    head, same, larger = scaling.store_table(measured, [(2_000_000, 2), (10**9, 4)])
    assert len(head) == len(same) == len(larger)
    assert same[2:] == ["on each worker", "12 MB", "0.5 s", "1 s", "10 MB", "8 MB"]
    # 250 times the shard; three quarters of it belong to others in place of a half.
    assert larger[2:] == ["none", "3 GB", "1.2e+02 s", "2.5e+02 s", "5 GB", "4.88 GB"]
    assert "| 2,000,000 | 2 |" in scaling.markdown([head, same])


def test_a_small_network_needs_more_samples_before_launching_is_hidden(monkeypatch):
    monkeypatch.setattr(scaling, "_DATA", {name: scaling._DATA[name] for name in ("fashion_mnist",)})
    steps, forward = 20, 12
    assert scaling.operators("fashion_mnist") > steps * 2 * forward
    _, slow = scaling.batch_table(6, 6e-6)
    _, fast = scaling.batch_table(60, 6e-6)
    assert int(fast[4]) == pytest.approx(10 * int(slow[4]), abs=10)

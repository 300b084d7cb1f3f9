"""Our distances beside those of other people's minimal-norm attacks, by AttackBench's measure."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.peers import distance_of, optimality, peers
from ima_dist.attacks import minimal
from ima_dist.core import noise

BOX = (0.0, 1.0)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).div(16).view(-1, 1, 8, 8), torch.tensor(labels)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    for epoch in range(15):
        for rows in torch.randperm(1500, generator=torch.Generator().manual_seed(epoch)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval(), x[1500:1700], y[1500:1700]


def test_the_measure_is_1_for_the_best_and_0_for_what_breaks_nothing():
    best = torch.tensor([0.0, 0.1, 0.2, 0.4])
    found = {
        "best": best,
        "none": torch.tensor([0.0, math.inf, math.inf, math.inf]),
        "half": best.clamp_min(0.2) * (best > 0),
    }
    measured = optimality(found)
    assert measured["best"] == pytest.approx(1)
    assert measured["none"] == pytest.approx(0, abs=1e-6)
    # Areas: best 0.175, none 0.75 · 0.4 = 0.3, half 0.2.
    assert measured["half"] == pytest.approx(1 - 0.025 / 0.125)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_peer_is_nearer_to_the_best_of_all(norm, trained):
    network, x, y = trained
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(len(x)))
    radius = 0.3 if norm == "linf" else 2.0

    def start(number: int) -> torch.Tensor:
        return noise.start(noise.derived(keys, number), x, radius, norm)

    found = {name: distance_of(peer, network, x, y, norm, BOX) for name, peer in peers(norm).items()}
    assert {"adv-lib FMN", "secml-torch FMN"} <= set(found)
    found["ours"] = minimal(network, x, y, norm=norm, start=start, box=BOX).distance
    measured = optimality(found)
    assert measured["ours"] > 0.98, measured
    assert measured["ours"] >= max(measured.values()) - 0.005, measured
    # What they break at the median distance, we break too, but for one of 200.
    for name, distance in found.items():
        assert int(((distance <= found["ours"].median()) & (found["ours"] > found["ours"].median())).sum()) <= 1, name

"""Distances by FMN from several starts: the attack, its evaluation, and the curve that they give."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from ima_dist.attacks import fmn, minimal
from ima_dist.attacks.fmn import MinimalResult
from ima_dist.config.presets import make_config
from ima_dist.core import noise
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.evaluation.batch import attack_batch
from ima_dist.results import distances
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from tests.support.networks import linear

NORMS = ("linf", "l2")


class Island(nn.Module):
    """Two classes in the plane. Class 1 is a far half-plane, and a small disc behind the samples, off the gradient."""

    def forward(self, x):
        far = x[:, 0] - 1.0
        near = 0.1 - torch.linalg.vector_norm(x - x.new_tensor([-0.25, 0.0]), dim=1)
        return torch.stack([torch.zeros_like(far), torch.maximum(far, 20 * near)], 1)


def test_other_starts_find_what_lies_behind_another_boundary():
    x = torch.zeros(20, 2, dtype=torch.float64)
    x[:, 1] = torch.linspace(-0.05, 0.05, 20)
    y = torch.zeros(20, dtype=torch.int64)
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(20))
    alone = fmn(Island(), x, y, norm="l2", steps=20)
    more = minimal(
        Island(), x, y, norm="l2", start=lambda number: noise.start(noise.derived(keys, number), x, 0.4, "l2")
    )
    assert (more.distance <= alone.distance).all()
    assert more.distance.median() < 0.3 < 0.9 < alone.distance.median()
    assert (Island()(more.x).argmax(1) == more.predicted).all()
    torch.testing.assert_close(torch.linalg.vector_norm(more.x - x, dim=1), more.distance)


@pytest.mark.parametrize("norm", NORMS)
def test_it_counts_what_it_spends_and_leaves_alone_what_is_near_enough(norm):
    network, x, y, wanted = linear(10)
    passed = 0

    def counting(points: torch.Tensor) -> torch.Tensor:
        nonlocal passed
        passed += len(points)
        return network(points)

    wrong = (y + 1) % 10
    whole = minimal(counting, x, torch.where(torch.arange(len(y)) < 5, wrong, y), norm=norm)
    assert whole.evaluations == passed
    assert (whole.distance[:5] == 0).all()
    assert torch.equal(whole.x[:5], x[:5])
    torch.testing.assert_close(whole.distance[5:].float(), wanted[norm][5:], rtol=0.03, atol=1e-4)
    some = minimal(network, x, y, norm=norm, enough=float(wanted[norm].median()))
    assert some.evaluations < minimal(network, x, y, norm=norm).evaluations
    assert ((some.distance <= wanted[norm].median() * 1.001) == (wanted[norm] <= wanted[norm].median())).sum() > 36
    assert minimal(network, x, y, norm=norm, starts=0).distance.isinf().all()


@pytest.mark.parametrize("norm", NORMS)
def test_starts_run_at_once_as_far_as_they_fit_into_a_batch(norm):
    network, x, y, _ = linear(10)
    x, y, many = x[:24], y[:24], torch.arange(24) >= 3
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(24))
    batches: list[int] = []

    def counting(points: torch.Tensor) -> torch.Tensor:
        batches.append(len(points))
        return network(points)

    def found(rows: torch.Tensor, labels: torch.Tensor) -> MinimalResult:
        def start(number: int) -> torch.Tensor:
            return noise.start(noise.derived(keys[rows], number), x[rows], 0.4, norm)

        batches.clear()
        return minimal(counting, x[rows], labels[rows], norm=norm, steps=5, start=start)

    # Three samples are sought and the rest is wrong: x itself, its three aims, and its five other starts.
    few = found(torch.arange(24), torch.where(many, (y + 1) % 10, y))
    search = 5 + 1 + 5
    assert [batches.count(3 * runs) for runs in (1, 3, 5)] == [search + 1 + 9, search, search]
    assert max(batches) == 24
    whole = found(torch.arange(24), y)
    assert max(batches) == 24, "no more than was passed in"
    torch.testing.assert_close(few.distance[:3], whole.distance[:3], rtol=0, atol=1e-12)
    assert torch.equal(few.predicted[:3], whole.predicted[:3])


@pytest.mark.parametrize("norm", NORMS)
def test_the_evaluation_says_the_same_at_every_level_in_any_batch(norm):
    network, x, y, _ = linear(10)
    levels = (0.0, 0.05, 0.1, 0.3)
    config = make_config("fashion_mnist", {"norm": norm, "eval.noise": levels, "eval.steps": 50})
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(len(x)))
    found = EVALUATION_ATTACKS["minimal"](network, x, y, keys, config, (0.0, 1.0))
    assert found.distance is not None
    for eps in levels:
        assert torch.equal(found["both", eps] != y, found.distance <= eps)
    part = EVALUATION_ATTACKS["minimal"](network, x[7:9], y[7:9], keys[7:9], config, (0.0, 1.0))
    torch.testing.assert_close(part.distance, found.distance[7:9], rtol=1e-5, atol=0)
    table = attack_batch("minimal", network, x, y, torch.arange(len(x)), config, (0.0, 1.0), 1)
    assert table.met[0.3]["gradients"] > 0
    column = table.outcomes["distance"].to_numpy().reshape(len(levels), -1)
    assert (column == found.distance.numpy().astype(np.float64)).all()
    only_clean = make_config("fashion_mnist", {"norm": norm, "eval.noise": (0.0,)})
    assert EVALUATION_ATTACKS["minimal"](network, x, y, keys, only_clean, None)["both", 0.0].equal(y)


def kept(tmp_path, found: list[float], **columns) -> Run:
    """A run with outcomes of ``minimal`` at two levels, and of another attack."""
    config = make_config("moons", {"epochs": 3})
    run = RunDir.create(config, tmp_path / "run")
    count = len(found)
    rows = {
        "index": [*range(count)] * 2 + [0],
        "attack": ["minimal"] * 2 * count + ["worst"],
        "noise": [0.0] * count + [0.1] * count + [0.1],
        "epoch": [3] * (2 * count + 1),
        "distance": pa.array([*found, *found, None], pa.float64()),
        **columns,
    }
    run.write_parquet(run.outcomes_path, pa.table(rows))
    return Run(run)


def test_the_curve_falls_at_each_distance(tmp_path):
    run = kept(tmp_path, [0.2, 0.0, 0.1, float("inf"), 0.1])
    found = distances.distances(run, 3)
    assert found is not None
    assert found.tolist() == [0.0, 0.1, 0.1, 0.2, float("inf")]
    levels, accuracy = distances.curve(found)
    assert levels.tolist() == [0.0, 0.1, 0.2]
    assert accuracy.tolist() == pytest.approx([0.8, 0.4, 0.2])
    text = distances.describe(run, 3)
    assert text == (
        "Distances of 5 samples to the nearest misclassified point: a quarter within 0.1, half within 0.1, three "
        "quarters within 0.2 (L∞); no misclassified point was found for 1."
    )
    assert distances.distances(run, 2) is None
    assert distances.describe(Run(RunDir(tmp_path / "none")), 3) is None


def test_distances_that_were_found_for_none(tmp_path):
    text = distances.describe(kept(tmp_path, [float("inf")] * 3), 3)
    assert text is not None
    assert text.endswith("point: no misclassified point was found for 3.")

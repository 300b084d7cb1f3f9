"""Equilibrium diagnostics: sums by pair of classes, mixing of the two sides, and the figure."""

from __future__ import annotations

import math
import shutil
from collections import Counter

import matplotlib.image
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from ima_dist.core.noise import Phase
from ima_dist.figures import png
from ima_dist.methods import Attacked, Batch
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from ima_dist.training import equilibrium
from ima_dist.training.equilibrium import _NUMBERS, NEIGHBOURS, PAIRS, Equilibrium, mixing
from tests.support import workers

BLOBS = {
    "data__source": "tests.support.user_code:blobs", "model__factory": "tests.support.user_code:three_way",
    "eps_max": 1.2, "epochs": 4, "batch_size": 32, "dtype": "float64", "attack__steps": 8,
}  # fmt: skip


def make_batch(x, y, indices):
    return Batch(x, y, indices, None, seed=0, epoch=0, phase=Phase.MARGIN)


# ---- sums by pair of classes ---------------------------------------------------------------------------


def identity_network():
    """Three classes whose logits are the three inputs; in training mode it would drop them all."""
    linear = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3))
    return nn.Sequential(linear, nn.Dropout(1.0))


def probabilities(*logits):
    total = sum(map(math.exp, logits))
    return [math.exp(v) / total for v in logits]


def test_pairs_of_a_linear_network_by_hand():
    labels = torch.tensor([2, 0, 1, 1, 1, 0])
    indices = torch.tensor([5, 4, 3, 2, 1, 0])  # the last of the batch has no noisy sample
    noisy = torch.tensor([[1, 1, 0], [1, 1.2, 0], [1.5, 1, 0], [0, 2, 2.1], [1, 0, 0.5]], dtype=torch.float64)
    given = make_batch(torch.zeros(6, 3, dtype=torch.float64), labels[indices], indices)
    network = identity_network()
    gathered = Equilibrium(labels, 3, (3,), seed=0, dtype=torch.float64)
    # In two parts, as if from two batches.
    for rows in (torch.tensor([0, 1, 2]), torch.tensor([3, 4])):
        gathered.add(network, given, Attacked(torch.cat([given.x, noisy[rows]]), rows))
    assert network.training
    assert network[0].weight.requires_grad
    assert network[0].weight.grad is None

    p = [probabilities(*row) for row in noisy.tolist()]
    found = gathered.rows(7)
    assert [(r["epoch"], r["class_i"], r["class_j"], r["count_i"], r["count_j"]) for r in found] == [
        (7, 0, 1, 1, 2),
        (7, 0, 2, 1, 0),
        (7, 1, 2, 1, 0),
    ]
    first, second, third = found
    assert first["difference_i"] == pytest.approx(0, abs=1e-15)
    assert first["difference_j"] == pytest.approx((p[1][0] - p[1][1] + p[2][0] - p[2][1]) / 2)
    assert first["abs_difference"] == pytest.approx((p[1][1] - p[1][0] + p[2][0] - p[2][1]) / 3)
    assert first["loss_i"] == pytest.approx(-math.log(p[0][0]))
    assert first["loss_j"] == pytest.approx(-(math.log(p[1][1]) + math.log(p[2][1])) / 2)
    assert (second["difference_i"], second["difference_j"]) == (pytest.approx(p[4][0] - p[4][2]), None)
    assert (third["difference_i"], third["loss_j"]) == (pytest.approx(p[3][1] - p[3][2]), None)
    assert (first["points_i"], first["points_j"], first["mixing"]) == (1, 2, None)

    gathered.clear()
    assert gathered.rows(8) == []


def test_points_are_of_the_panel_and_bounded():
    labels = torch.arange(2400) % 2
    x = torch.rand(2400, 4, generator=torch.Generator().manual_seed(0))
    gathered = Equilibrium(labels, 2, (4,), seed=0)
    # A network that is on the boundary everywhere.
    network = nn.Linear(4, 2)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    for part in torch.randperm(2400).split(300):
        given = make_batch(x[part], labels[part], part)
        gathered.add(network, given, Attacked(torch.cat([x[part], x[part] + 1]), torch.arange(300)))
    (row,) = gathered.rows(1)
    assert (row["count_i"], row["count_j"], row["points_i"], row["points_j"]) == (1200, 1200, 1000, 1000)
    assert row["loss_i"] == pytest.approx(math.log(2))
    assert abs(row["mixing"] - 1) < 3 * row["mixing_sd"]  # uniform points, whatever the label
    state = gathered.state_dict()
    chosen = {tuple(p) for p in state["points"].tolist()}
    assert len(chosen) == 2000
    assert chosen < {tuple(p) for p in (x + 1).tolist()}

    many = Equilibrium(torch.arange(20_000) % 10, 10, (3, 64, 64), seed=0)
    assert 0.9 * _NUMBERS < many.state_dict()["points"].numel() <= _NUMBERS


def nearest_of_many(classes):
    """A network whose class c is nearest at c on a line, with logits −(x − c)²."""

    class Nearest(nn.Module):
        def forward(self, x):
            return -((x - torch.arange(classes, dtype=x.dtype)) ** 2)

    return Nearest()


def test_a_thousand_classes_cost_no_more_than_their_samples(monkeypatch):
    classes, samples = 1000, 30_000
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator)
    # Noisy samples lie beside a neighbouring class, most often that above, or now and then beside any other.
    step = torch.randint(classes, (samples,), generator=generator)
    other = torch.where(step < 600, labels + 1, torch.where(step < 900, labels - 1, step)) % classes
    other = torch.where(other == labels, (labels + 1) % classes, other)
    x = other.double()[:, None]
    gathered = Equilibrium(labels, classes, (1,), seed=0, dtype=torch.float64)
    monkeypatch.setattr(equilibrium, "_WAITING", 5000)
    handed = []
    monkeypatch.setattr(equilibrium, "mixing", lambda points, side: handed.append(len(points)) or None)
    for part in torch.arange(samples).split(1000):
        given = make_batch(x[part], labels[part], part)
        gathered.add(nearest_of_many(classes), given, Attacked(x[part], torch.arange(len(part))))

    counted = Counter((min(i, j), max(i, j)) for i, j in zip(labels.tolist(), other.tolist(), strict=True))
    state = gathered.state_dict()
    assert len(state["pairs"]) == len(set(zip(labels.tolist(), other.tolist(), strict=True)))
    assert all(tensor.numel() <= 8 * samples for tensor in state.values())  # not the square of the classes
    rows = gathered.rows(1)
    assert len(counted) > 2 * PAIRS
    assert len(rows) == len(handed) == PAIRS
    assert sum(handed) <= 20_000
    fewest = sorted(counted.values(), reverse=True)[PAIRS - 1]
    for row in rows:
        pair = row["class_i"], row["class_j"]
        assert row["count_i"] + row["count_j"] == counted[pair] >= fewest
        assert row["count_i"] == int(((labels == pair[0]) & (other == pair[1])).sum())
    assert [(r["class_i"], r["class_j"]) for r in rows] == sorted((r["class_i"], r["class_j"]) for r in rows)


def test_a_state_with_the_sums_of_all_pairs_is_continued():
    """As earlier versions saved it: (4, C, C), by true class and other class."""
    labels = torch.tensor([0, 1, 2, 0])
    x = torch.tensor([[0.9, 1, 0], [1, 0.9, 0], [0, 1, 0.8], [0.7, 0, 1]], dtype=torch.float64)
    whole = Equilibrium(labels, 3, (3,), seed=0, dtype=torch.float64)
    whole.add(identity_network(), make_batch(x, labels, torch.arange(4)), Attacked(x, torch.arange(4)))
    state = whole.state_dict()
    dense = torch.zeros(4, 9, dtype=torch.float64)
    dense[:, state["pairs"]] = state["sums"]
    continued = Equilibrium(labels, 3, (3,), seed=0, dtype=torch.float64)
    continued.load_state_dict({**{k: state[k] for k in ("others", "points")}, "sums": dense.view(4, 3, 3)})
    assert continued.rows(1) == whole.rows(1) != []
    # One of more points than are kept now: the sums count, the points do not.
    more = {"sums": dense.view(4, 3, 3), "others": torch.ones(9, dtype=torch.int64), "points": torch.ones(9, 3)}
    continued.load_state_dict(more)
    assert [row["count_i"] for row in continued.rows(1)] == [row["count_i"] for row in whole.rows(1)]


def run_blobs(path, count=1, **options):
    config, run = workers.start_run(path, "moons", **{**BLOBS, **options})
    workers.run_on(count, workers.train, config, path)
    return config, run


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a == pytest.approx(b, abs=1e-9), (a, b)


def test_counts_are_those_of_the_margin_shards(tmp_path):
    config, run = run_blobs(tmp_path / "run")
    rows = run.read_equilibrium()
    assert max(r["epoch"] for r in rows) == config.epochs
    seen = 0
    for epoch in range(1, config.epochs + 1):
        shard = pq.ParquetFile(next((run.margins_dir / f"epoch={epoch:04d}").glob("shard-*"))).read().to_pandas()
        for label in range(3):
            crossed = int((shard.crossed & (shard.label == label)).sum())
            own = [r for r in rows if r["epoch"] == epoch]
            counted = sum(r["count_i"] for r in own if r["class_i"] == label)
            counted += sum(r["count_j"] for r in own if r["class_j"] == label)
            assert counted == crossed
            seen += crossed
    assert seen > 100
    # On the boundary: halving ten times leaves a thousandth of the first bracket.
    assert all(r["abs_difference"] < 0.02 for r in rows)
    assert all(r["loss_i"] is None or r["loss_i"] > math.log(2) - 0.02 for r in rows)
    assert any(r["mixing"] is not None for r in rows)


@pytest.mark.parametrize("margin_update", ["epoch", "online"])
def test_equal_on_one_and_two_workers(tmp_path, margin_update):
    _, one = run_blobs(tmp_path / "one", margin_update=margin_update)
    _, two = run_blobs(tmp_path / "two", 2, margin_update=margin_update)
    assert_same(one.read_equilibrium(), two.read_equilibrium())


def test_interrupted_within_the_margin_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("ima_dist.training.loop.attack_batch_size", lambda *_: 50)
    _, whole = run_blobs(tmp_path / "whole")
    path = tmp_path / "broken"
    config, broken = workers.start_run(path, "moons", **BLOBS)
    # Ten steps an epoch, five reports in its pass of six turns and one at its end: the last epoch's third turn.
    workers.train(config, path, stop_after=3 * 16 + 10 + 3)
    assert [p.name for p in broken.checkpoints_dir.glob("*-step=*")] == ["epoch=0003-step=000010"]
    assert {r["epoch"] for r in broken.read_equilibrium()} <= {1, 2, 3}
    workers.train(config, path)
    assert_same(whole.read_equilibrium(), broken.read_equilibrium())


def test_interrupted_within_online_steps_on_two_workers_and_resumed_by_one(tmp_path):
    _, whole = run_blobs(tmp_path / "whole", margin_update="online")
    path = tmp_path / "broken"
    config, broken = workers.start_run(path, "moons", **{**BLOBS, "margin_update": "online"})
    workers.run_on(2, workers.train, config, path, 3 * 11 + 6)
    assert list(broken.checkpoints_dir.glob("*-step=*"))
    workers.train(config, path)
    assert_same(whole.read_equilibrium(), broken.read_equilibrium())


def test_an_epoch_that_is_repeated_replaces_its_rows(tmp_path):
    config, run = run_blobs(tmp_path / "run")
    before = run.read_equilibrium()
    shutil.rmtree(run.checkpoints_dir / "epoch=0004")  # as if the run had been killed while it was written
    run.write_equilibrium([{**r, "count_i": -1} if r["epoch"] == 4 else r for r in before])
    workers.train(config, run.path)
    assert_same(before, run.read_equilibrium())


def test_other_methods_have_none(tmp_path):
    # The points of mma lie where the true class has half of the probability, which is another surface.
    _, run = run_blobs(tmp_path / "run", method="mma", epochs=1)
    assert not run.equilibrium_path.exists()
    assert run.read_equilibrium() == []


# ---- mixing --------------------------------------------------------------------------------------------


def draw(n, m, dimensions, shift=0.0, seed=0):
    points = torch.randn(n + m, dimensions, generator=torch.Generator().manual_seed(seed))
    points[n:, 0] += shift
    return points, torch.arange(n + m) < n


def deviation(points, side):
    value, sd = mixing(points, side)
    return (value - 1) / sd


@pytest.mark.parametrize(("n", "m", "dimensions"), [(200, 200, 2), (60, 400, 2), (150, 150, 300)])
def test_mixing_of_one_distribution_and_of_two(n, m, dimensions):
    same = [deviation(*draw(n, m, dimensions, seed=seed)) for seed in range(40)]
    mean = sum(same) / 40
    spread = math.sqrt(sum((v - mean) ** 2 for v in same) / 39)
    # Standardised values: mean 0 and deviation 1, to three standard errors.
    assert abs(mean) < 3 / math.sqrt(40)
    assert 0.65 < spread < 1.35
    shift = 2.0 if dimensions == 2 else 8.0
    assert max(deviation(*draw(n, m, dimensions, shift, seed)) for seed in range(10)) < -3
    assert mixing(*draw(n, m, dimensions, shift=1000.0))[0] == 0


def test_mixing_tells_a_difference_of_spread_from_one_of_numbers():
    points, side = draw(100, 300, 2)
    value, sd = mixing(points, side)
    assert abs(value - 1) < 3 * sd
    points[side] *= 0.2
    assert mixing(points, side)[0] < 0.8


def test_mixing_by_hand():
    # Ten pairs far apart, one of each side: all of the nearest neighbours lie on the other side.
    points = torch.arange(10).repeat_interleave(2)[:, None] * 10.0 + torch.tensor([0.0, 1.0]).repeat(10)[:, None]
    side = torch.arange(20) % 2 == 0
    assert mixing(points, side, k=1)[0] == pytest.approx(20 * 19 / (2 * 10 * 10))
    # Points that float32 distances by squares would confuse.
    assert mixing(1000 + points * 1e-3, side, k=1)[0] == pytest.approx(1.9)
    assert mixing(points[1:], side[1:]) is None


def test_deviation_of_mixing_is_that_of_permutations():
    points, side = draw(25, 60, 3)
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([mixing(points, side[torch.randperm(85, generator=generator)])[0] for _ in range(3000)])
    sd = mixing(points, side)[1]
    assert float(values.mean()) == pytest.approx(1, abs=4 * sd / math.sqrt(3000))
    assert float(values.std()) == pytest.approx(sd, rel=0.05)
    assert NEIGHBOURS == 5


# ---- figure --------------------------------------------------------------------------------------------


def row(epoch, i, j, **changes):
    base = {
        "epoch": epoch, "class_i": i, "class_j": j, "count_i": 100 * epoch, "count_j": 150, "difference_i": 0.001,
        "difference_j": -0.001, "abs_difference": 0.001, "loss_i": 0.9, "loss_j": 0.8, "points_i": 50,
        "points_j": 60, "mixing": 0.4 + 0.1 * epoch, "mixing_sd": 0.05,
    }  # fmt: skip
    return {**base, **changes}


UNKNOWN = dict.fromkeys(("difference_i", "loss_i", "mixing", "mixing_sd"))


@pytest.fixture(scope="module", autouse=True)
def unrendered_figures():
    """Not here: the figure is looked at."""


@pytest.mark.parametrize("classes", [2, 4])
def test_figure(tmp_path, classes):
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    rows = [row(1, 0, 1, count_i=0, **UNKNOWN)]
    rows += [row(epoch, i, j) for epoch in (2, 3, 4) for i, j in pairs]
    png.equilibrium(tmp_path / "e.png", rows)
    image = matplotlib.image.imread(tmp_path / "e.png")
    assert image.shape[:2] == (1050, 1200)
    for colour in ("#0072B2", "#009E73", "#CC79A7", "#D55E00"):
        rgb = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert int(((torch.from_numpy(image[..., :3]) - rgb).abs().amax(-1) < 0.02).sum()) > 200, colour


def test_weighted_mean_of_the_pairs():
    rows = [row(1, 0, 1, count_i=50, mixing=1.0), row(1, 0, 2, count_i=650, mixing=0.5), row(2, 0, 1, **UNKNOWN)]
    table = pd.DataFrame(rows, dtype=float)
    means = png._mean(table, table["mixing"])
    assert means.index.tolist() == [1]
    assert means[1] == pytest.approx((200 * 1.0 + 800 * 0.5) / 1000)


def test_lasting_imbalance_by_hand():
    swinging = [row(e, 0, 1, count_i=100 if e % 2 else 300, count_j=300 if e % 2 else 100) for e in range(1, 7)]
    lasting = [row(e, 0, 2, count_i=0, count_j=100) for e in range(2, 7)]
    found = png._lasting_imbalance(pd.DataFrame(swinging + lasting))
    assert found.index.tolist() == [1, 2, 3, 4, 5, 6]
    values = found.to_numpy()
    # After two epochs the first pair is even; after five, one excess of 200 is left, and 400 of the second pair.
    assert values[:2] == pytest.approx([200 / 400, 100 / 900])
    assert values[4:] == pytest.approx([(200 + 400) / 2400, (200 + 500) / 2500])


def test_draw_all_draws_it_if_there_are_rows(tmp_path):
    _, run = workers.start_run(tmp_path / "run", "moons")
    run.write_equilibrium([])
    assert png.draw_all(Run(run)) == []
    run.write_equilibrium([row(1, 0, 1, **UNKNOWN)])
    assert png.draw_all(Run(run)) == [run.figures_dir / "equilibrium.png"]
    assert RunDir(run.path).read_equilibrium() == [row(1, 0, 1, **UNKNOWN)]


def test_online_points_are_judged_before_the_step_moves_running_statistics(tmp_path, monkeypatch):
    """The margins' points were found with the statistics before the step, and lie on that network's boundary."""
    seen = []
    add = Equilibrium.add

    def judged(self, network, batch, attacked):
        seen.extend(int(m.num_batches_tracked) for m in network.modules() if isinstance(m, nn.BatchNorm1d))
        add(self, network, batch, attacked)

    monkeypatch.setattr(Equilibrium, "add", judged)
    options = {"margin_update": "online", "model__factory": "tests.support.user_code:with_batch_norm", "epochs": 2}
    config, run = run_blobs(tmp_path / "run", **options)
    steps = -(-300 // config.batch_size)
    assert seen == list(range(2 * steps))
    rows = [row for row in run.read_equilibrium() if row["epoch"] == 2]
    assert rows
    # Ten halvings; with the statistics of the step the points lie well off the boundary.
    assert all(row["abs_difference"] < 0.02 for row in rows)

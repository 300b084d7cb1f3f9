"""The benchmarks: their references compute what the product does, passes are counted, and every part runs."""

from __future__ import annotations

import json
import textwrap

import pytest
import torch

from benchmarks import plain, released, run, timing, workers
from benchmarks.epochs import prepared
from ima_dist import train
from ima_dist.config.presets import make_config
from ima_dist.data.load import load
from ima_dist.models import moons_mlp

SMALL = {
    "data.subset": 96,
    "batch_size": 32,
    "epochs": 3,
    "delta_eps": 0.1,
    "dtype": "float64",
    "margin_update": "online",
}


def test_the_plain_loop_trains_the_same_network(tmp_path):
    config = make_config("moons", SMALL)
    data = load(config.data, config.seed)
    ours, theirs = (prepared(config, data, str(tmp_path)) for _ in range(2))
    ours.fit()
    margins = plain.train(theirs, plain.ima(theirs))
    for name, weights in ours.network.state_dict().items():
        assert torch.allclose(weights, theirs.network.state_dict()[name], atol=1e-9), name
    assert torch.allclose(ours.state.store.shard, margins, atol=1e-9)
    assert margins.unique().numel() > 2


def test_passes_are_told_apart_by_what_they_compute():
    network = moons_mlp()
    x = torch.rand(5, 2)
    with timing.recorded(network) as passes:
        with torch.no_grad():
            network(x)
        z = x[:3].requires_grad_()
        torch.autograd.grad(network(z).sum(), z)
        network(x[:4]).sum().backward()
        network(z)  # no gradient is asked for
    assert passes == [("forward", 5), ("input", 3), ("weights", 4), ("forward", 3)]
    assert timing.counts(passes) == {"passes": 4, "forward": 8, "input": 3, "weights": 4}
    one = 2 * (2 * 32 + 32 * 64 + 64 * 128 + 128 * 2)
    assert timing.operations(network, passes, (2,)) == one * (8 + 2 * 3 + 3 * 4)
    bare = timing.Bare(network, (2,), 8)
    bare.time(repeats=1)
    assert bare.total(passes) > bare.total(passes[:1]) > 0


def test_no_more_passes_and_samples_than_the_plain_loop(tmp_path):
    """What speed rests on, as counts: no pass beyond Algorithm 3's, and none with more samples."""
    config = make_config("moons", SMALL)
    data = load(config.data, config.seed)
    ours, theirs = (prepared(config, data, str(tmp_path)) for _ in range(2))
    with timing.recorded(theirs.network) as plainly:
        plain.train(theirs, plain.ima(theirs))
    ours.begin()
    with timing.recorded(ours.network) as passes:
        for _ in range(config.epochs):
            ours._train_epoch()
            ours.state.store.reduce()
            ours.state.begin_epoch(ours.state.position.epoch + 1)
    steps = config.epochs * 3
    assert len(plainly) == steps * (1 + 20 + 1 + 10 + 1)
    # One more than the plain loop: the equilibrium diagnostics look at the noisy samples.
    assert len(passes) <= len(plainly) + steps
    mine, all_of_them = timing.counts(passes), timing.counts(plainly)
    assert mine["weights"] == all_of_them["weights"]
    assert mine["input"] <= all_of_them["input"]
    assert mine["forward"] <= all_of_them["forward"] + mine["weights"]


AUTHORS = """
import torch


def IMA_loss(model, X, Y, margin, norm_type, max_iter, step, **settings):
    Z = model(X)
    predicted = Z.argmax(1)
    crossed = torch.zeros(len(X), dtype=torch.int64)
    crossed[0] = 1
    rows = torch.tensor([0])
    return torch.nn.functional.cross_entropy(Z, Y), None, None, None, predicted, crossed, X[rows] + 0.02, None, rows
"""


def test_all_parts_run_in_small_sizes_against_a_released_loss_too(tmp_path, capsys):
    code = tmp_path / "authors" / "core"
    code.mkdir(parents=True)
    (code / "RobustDNN_IMA_bn.py").write_text(textwrap.dedent(AUTHORS))
    out = tmp_path / "found.json"
    parts = "epochs,step,curves,compaction,recipes"
    run.main(
        ["--size", "quick", "--pairs", "1", "--parts", parts, "--authors", str(tmp_path / "authors"), "--out", str(out)]
    )
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert [(r["preset"], r["ours"], r["reference"]) for r in found["epochs"]] == [
        (preset, ours, reference)
        for preset, of in (("moons", ("", "recipe fast", "--compile")), ("fashion_mnist", ("", "recipe fast")))
        for ours in of
        for reference in ("plain loop", "authors' loss")
    ]
    for row in found["epochs"]:
        exact, fast = row["passes"]["theirs"], row["passes"]["ours"]
        assert row["reference"] != "plain loop" or fast["input"] <= exact["input"]
    assert {row["against"] for row in found["curves"]} == {"advertorch", "advertorch, one PGD"}
    assert all(row["crossing_differs"] == 0 for row in found["compaction"])
    assert sum(line.startswith("| ---") for line in printed.splitlines()) == 5


def test_a_directory_without_the_released_code_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no RobustDNN_IMA_bn"):
        released.released(tmp_path)


def test_the_steps_of_two_workers_are_timed(tmp_path):
    found = workers.epochs_on(2, {**workers.OPTIONS, **workers.SMALL}, str(tmp_path))
    assert found["cpu"] > found["slowest"] > 0


def test_a_run_with_ray_and_one_without_differ_in_nothing_else(tmp_path, capsys):
    shown = []
    for local in (True, False):
        flags = workers.flags({**workers.OPTIONS, **workers.SMALL}, tmp_path / "run", local)
        assert train.main([*flags, "--show-config"]) == 0
        shown.append([line for line in capsys.readouterr().out.splitlines() if "--workers " not in line])
    assert shown[0] == shown[1]
    assert any("--data.subset" in line and " 20 " in line for line in shown[0])

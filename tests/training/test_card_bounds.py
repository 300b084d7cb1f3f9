"""Bounds on what a step costs on a card: waits by file, kernels, evaluations, and bytes between workers.

The pretend card counts what the host asks for; times would say nothing on a shared machine. A bound that is broken by a
change for the better is to be lowered, one that is broken by a change for the worse is to be kept.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from ima_dist.attacks import anpgd, bpgd, ddn, fmn, pgd, worst
from ima_dist.config.presets import make_config
from ima_dist.data.load import load
from ima_dist.data.order import batches
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training
from tests.support.fakecard import CUDA0, Card, fake_card
from tests.support.workers import run_on

JOURNAL = {"method": "ima", "delta_eps": 0.1, "margin_rule": "journal"}
GRADIENT, NOISY = "ima_dist/training/numerics.py", "ima_dist/methods/ima.py"
# Kernels of a step with the presets' 20 steps and 10 halvings on the network of Moons, and waits by file.
METHODS = {
    "ima": ({"method": "ima", "delta_eps": 0.1}, 830, {GRADIENT: 1, NOISY: 1}),
    "online": ({"method": "ima", "delta_eps": 0.1, "margin_update": "online"}, 880, {GRADIENT: 1, NOISY: 1}),
    "ce": ({"method": "ce"}, 75, {GRADIENT: 1}),
    "adv": ({"method": "adv"}, 675, {GRADIENT: 1}),
    "rand": ({"method": "rand"}, 130, {GRADIENT: 1}),
    "trades": ({"method": "trades"}, 930, {GRADIENT: 1}),
    "mma": ({"method": "mma", "delta_eps": 0.1}, 990, {GRADIENT: 1, "ima_dist/methods/mma.py": 1}),
    "ddn": ({"method": "ddn", "norm": "l2"}, 1080, {GRADIENT: 1}),
    "fat": ({"method": "fat"}, 930, {GRADIENT: 1}),
    "journal": (JOURNAL, 1040, {GRADIENT: 1, NOISY: 1}),
    "ame": ({**JOURNAL, "margin_rule": "ame"}, 1090, {GRADIENT: 1, NOISY: 1}),
    "nfgsm": ({"method": "nfgsm"}, 160, {GRADIENT: 1}),
}
STEPS = 3


@functools.cache
def step_of(method: str, graphs: bool = False) -> tuple[Card, int]:
    """The counts of ``STEPS`` steps, and the kernels of one forward pass of an attack."""
    options = {"data.subset": 700, "epochs": 1, "eps_max": 0.3, "cuda_graphs": graphs, **METHODS[method][0]}
    config = make_config("moons", options)
    with tempfile.TemporaryDirectory() as folder, fake_card() as card:
        training = Training(config, RunDir.create(config, Path(folder) / "run"), load(config.data, config.seed), CUDA0)
        training.begin()
        first, second, *order = batches(len(training.train), config.batch_size, 0, 0)
        training._step(first)
        training._step(second)  # captures its attack
        x, _ = training.train.batch(first)
        card.reset()
        with torch.no_grad():
            training.network(x)
        forward = card.kernels.total()
        card.reset()
        for batch in order[:STEPS]:
            training._step(batch)
    return card, forward


def by_file(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for (_, line), count in counts.items():
        found[line.rpartition(":")[0]] += count
    return dict(found)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_at_most_twice_and_launches_no_more_kernels_than_it_did(method):
    _, kernels, waits = METHODS[method]
    card, _ = step_of(method)
    assert sum(waits.values()) <= 2
    assert by_file(card.waits) == {file: STEPS * count for file, count in waits.items()}, card.waits.most_common()
    assert card.kernels.total() <= STEPS * kernels, card.kernels.most_common(20)


# With --cuda-graphs what the host launches is the training pass, the noise of the start, and one replay.
REPLAYED = {
    "ima": 145,
    "online": 195,
    "adv": 135,
    "trades": 155,
    "mma": 180,
    "ddn": 80,
    "fat": 140,
    "journal": 195,
    "ame": 240,
}


@pytest.mark.parametrize("method", REPLAYED)
def test_a_captured_attack_is_launched_at_once(method):
    card, _ = step_of(method, graphs=True)
    assert [graph.replays for graph in card.graphs] == [1 + STEPS]
    assert card.kernels.total() <= STEPS * REPLAYED[method], card.kernels.most_common(20)
    assert card.waits.total() <= 2 * STEPS


def test_a_step_of_ima_launches_little_more_than_one_of_adv_and_ten_forward_passes():
    ima, forward = step_of("ima")
    adv, _ = step_of("adv")
    assert ima.kernels.total() <= 1.1 * (adv.kernels.total() + STEPS * 10 * forward)


# Kernels and waits of one more step of an attack that breaks no sample, on a network whose pass forward has 5 kernels.
ATTACKS = {
    "pgd": (lambda n, x, y, s: pgd(n, x, y, 1e-4, norm="linf", steps=s), 20, 0),
    "pgd-l2": (lambda n, x, y, s: pgd(n, x, y, 1e-4, norm="l2", steps=s), 30, 0),
    "bpgd": (lambda n, x, y, s: bpgd(n, x, y, 1e-4, norm="linf", steps=s), 20, 0),
    "anpgd": (lambda n, x, y, s: anpgd(n, x, y, 1e-4, norm="linf", max_eps=2e-4, steps=s), 20, 0),
    "ddn": (lambda n, x, y, s: ddn(n, x, y, steps=s), 42, 0),
    "fmn": (lambda n, x, y, s: fmn(n, x, y, norm="linf", steps=s), 75, 0),
    "worst": (lambda n, x, y, s: worst(n, x, y, [1e-4], norm="linf", steps=s, rivals=0), 48, 0.2),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_more_step_of_an_attack_costs_no_more_than_it_did(attack):
    call, kernels, waits = ATTACKS[attack]
    found = []
    for count in (10, 20):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
        x = torch.rand(16, 3)
        y = network(x).argmax(1)
        with fake_card() as card:
            network, x, y = network.to(CUDA0), x.to(CUDA0), y.to(CUDA0)
            call(network, x, y, 1)  # counts the network's operations
            card.reset()
            call(network, x, y, count)
        found.append((card.kernels.total(), card.waits.total()))
    (few, fewer_waits), (many, more_waits) = found
    assert (many - few) / 10 <= kernels
    assert (more_waits - fewer_waits) / 10 <= waits
    # Without any, a CUDA graph can capture the whole attack. FMN gathers what it has found at its end.
    assert more_waits == 0 or attack in ("worst", "fmn")


# Forward passes that the attacks of an epoch may spend, per sample, with 4 steps and 2 halvings.
SPENT = {"ima": 2 * 8, "online": 8, "ce": 0, "adv": 4, "rand": 0, "trades": 5, "mma": 8, "ddn": 4}


@pytest.mark.parametrize("method", SPENT)
def test_an_epoch_spends_no_more_evaluations_than_the_plain_algorithm(method, tmp_path):
    short = {"attack.steps": 4, "attack.bisections": 2, "data.subset": 120, "batch_size": 40, "epochs": 1}
    config = make_config("moons", {"eps_max": 0.3, **METHODS[method][0], **short})
    data = load(config.data, config.seed)
    training = Training(config, RunDir.create(config, tmp_path / "run"), data, torch.device("cpu"))
    training.fit()
    spent = training.history[0]["evaluations"]
    assert spent <= SPENT[method] * len(training.train)
    assert spent > 0 or SPENT[method] == 0


def test_two_workers_exchange_a_gradient_per_step_and_the_margins_per_epoch(tmp_path):
    config = make_config(
        "moons",
        {
            "data.subset": 256,
            "epochs": 1,
            "batch_size": 64,
            "attack.steps": 2,
            "attack.bisections": 1,
            "delta_eps": 0.1,
        },
    )
    RunDir.create(config, tmp_path / "run")
    run_on(2, count_bytes, config, tmp_path / "run", tmp_path)
    found = json.loads((tmp_path / "bytes.json").read_text())
    assert found["steps"] == 4
    # Of a step: the gradient, by DDP, and nothing else.
    assert found["gradient"] == found["parameters"]
    assert found["in_steps"] == 0
    # Of the end of an epoch: margins; 10,000 bins, from which their quantiles come; sums and histograms of a few kB.
    assert found["after"] <= 4 * 256 + 80_000 + 6_000


def count_bytes(config, path, folder) -> None:
    sent = 0

    def counting(collective):
        def call(*arguments, **options):
            nonlocal sent
            for value in arguments:
                for tensor in value if isinstance(value, list) else [value]:
                    sent += tensor.nbytes if isinstance(tensor, torch.Tensor) else 0
            return collective(*arguments, **options)

        return call

    names = ("all_reduce", "all_gather", "all_to_all_single")
    with mock.patch.multiple(dist, **{name: counting(getattr(dist, name)) for name in names}):
        training = Training(config, RunDir(path), load(config.data, config.seed), torch.device("cpu"))
        training.begin()
        before = sent
        step, in_steps = training._step, []

        def watched(*given):
            start = sent
            step(*given)
            in_steps.append(sent - start)

        training._step = watched
        training.fit()
    if dist.get_rank() == 0:
        parameters = [p.numel() * p.element_size() for p in training.network.parameters() if p.requires_grad]
        logged = training.trained._get_ddp_logging_data()
        found = {
            "steps": len(in_steps),
            "in_steps": sum(in_steps),
            "after": sent - before - sum(in_steps),
            "gradient": logged["total_parameter_size_bytes"],
            "parameters": sum(parameters),
        }
        (folder / "bytes.json").write_text(json.dumps(found))

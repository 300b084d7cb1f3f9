"""The attacks that evaluate a network, beyond pgd100 and worst, on classifiers whose distances are known."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch

from ima_dist.attacks import spsa
from ima_dist.config.attacks import ATTACKS, protocol
from ima_dist.config.presets import make_config
from ima_dist.config.values import with_options
from ima_dist.core import noise
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.models import fashion_mnist_cnn
from tests.support.networks import Linear, linear

LEVELS = (0.0, 0.05, 0.1, 0.2)


def settings(norm: str, **changes):
    usual = {"norm": norm, "eval.noise": LEVELS, "eval.steps": 50, "eval.spsa_samples": 64}
    return with_options(make_config("fashion_mnist", {"norm": norm}), {**usual, **changes})


def keys(x):
    return noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(len(x)))


def test_every_attack_of_the_configuration_is_there():
    assert tuple(EVALUATION_ATTACKS) == ATTACKS


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("attack", "reach"), [("pgd-mma", 0.99), ("spsa", 0.95), ("minimal", 0.98), ("autoattack", 0.999)]
)
@pytest.mark.parametrize("classes", [2, 10])
def test_breaks_a_linear_classifier_where_its_distance_says(attack, reach, classes, norm):
    network, x, y, distances = linear(classes)
    before = [p.clone() for p in network.parameters()]
    config = settings(norm, **{"eval.noise": (0.0, 0.05, 0.1) if norm == "linf" else (0.0, 0.1, 0.2)})
    found = EVALUATION_ATTACKS[attack](network, x, y, keys(x), config, (0.0, 1.0))
    for eps in config.eval.noise:
        broken = found["both", eps] != y
        assert not (broken & (distances[norm] > eps * 1.001)).any()
        assert (broken | (distances[norm] > eps * reach)).all()
    assert (found["both", 0.0] == y).all()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("attack", ["pgd-mma", "spsa", "minimal", "white-noise"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sample_is_attacked_in_the_same_way_in_any_batch(attack, norm):
    torch.manual_seed(0)
    network = fashion_mnist_cnn().double()
    x = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    y = network(x).argmax(1)
    config = settings(norm, **{"eval.steps": 2, "eval.spsa_samples": 3, "eval.noise": (0.0, 0.3)})
    run = EVALUATION_ATTACKS[attack]
    whole = run(network, x, y, keys(x), config, (0.0, 1.0))
    parts = [run(network, x[rows], y[rows], keys(x)[rows], config, (0.0, 1.0)) for rows in torch.arange(6).split(4)]
    for name, predictions in whole.items():
        assert torch.equal(predictions, torch.cat([part[name] for part in parts]))


def test_autoattack_leaves_the_generators_and_broken_samples_alone():
    network, x, y, _ = linear(10)
    wrong = y.clone()
    wrong[:5] = (y[:5] + 1) % 10
    state = torch.random.get_rng_state()
    found = EVALUATION_ATTACKS["autoattack"](network, x, wrong, keys(x), settings("linf"), (0.0, 1.0))
    assert torch.equal(torch.random.get_rng_state(), state)
    for eps in LEVELS:
        assert torch.equal(found["both", eps][:5], y[:5])
    robust = [(found["both", eps] == wrong) for eps in LEVELS]
    assert all((a | ~b).all() for a, b in itertools.pairwise(robust))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_of_points_without_a_box(norm):
    network, x, y, distances = linear(2, shape=(2,))
    config = settings(norm, **{"eval.noise": (0.0, 0.5, 2.0)})
    x = 10 * x - 4.5  # far outside [0, 1], about the same boundary
    found = EVALUATION_ATTACKS["autoattack"](network, x, y, keys(x), config, None)
    for eps in config.eval.noise:
        broken = found["both", eps] != y
        assert not (broken & (10 * distances[norm] > eps * 1.001)).any()
        assert (broken | (10 * distances[norm] > eps * 0.999)).all()


def test_pgd_mma_takes_fine_steps_for_mnist_linf_alone():
    scale = {
        (preset, norm): protocol("pgd-mma", make_config(preset, {"norm": norm}))["step_scale"]
        for preset in ("mnist", "cifar10")
        for norm in ("linf", "l2")
    }
    assert scale == {("mnist", "linf"): 2.5, ("mnist", "l2"): 25, ("cifar10", "linf"): 25, ("cifar10", "l2"): 25}


def test_pgd_mma_starts_ten_times_and_from_other_points(monkeypatch):
    seen = []

    def stub(network, x, y, eps, *, start, loss, **rest):
        seen.append((loss, start.clone()))
        return x

    monkeypatch.setattr("ima_dist.evaluation.attacks.advertorch_pgd", stub)
    network, x, y, _ = linear(10)
    EVALUATION_ATTACKS["pgd-mma"](network, x, y, keys(x), settings("linf", **{"eval.noise": (0.1,)}), (0.0, 1.0))
    assert [loss for loss, _ in seen] == ["ce"] * 5 + ["margin"] * 5
    starts = torch.stack([start for _, start in seen])
    assert starts.abs().amax() <= 0.1
    assert len({float(s.sum()) for s in starts}) == 10


def test_white_noise_is_uniform_in_the_box_and_counts_the_share_that_flips():
    # One pixel and a boundary at 0.45: noise of amplitude 0.2 around 0.5 crosses it in (0.2 − 0.05)/0.4 of all draws.
    network = Linear(torch.tensor([[1.0], [-1.0]]), (1, 1, 1))
    x = torch.full((20_000, 1, 1, 1), 0.55)
    y = torch.zeros(len(x), dtype=torch.int64)
    found = EVALUATION_ATTACKS["white-noise"](network, x, y, keys(x), settings("linf"), (0.0, 1.0))
    share = (found["both", 0.2] != y).float().mean()
    assert abs(float(share) - 0.375) < 0.015
    assert (found["both", 0.0] == y).all()


def test_spsa_stays_in_ball_and_box_and_does_not_depend_on_the_size_of_its_chunks():
    torch.manual_seed(1)
    network = fashion_mnist_cnn().double()
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    y = network(x).argmax(1)
    same = {"samples": 7, "iterations": 4, "box": (0.0, 1.0)}
    for norm, size in (("linf", lambda d: d.abs().flatten(1).amax(1)), ("l2", lambda d: d.flatten(1).norm(dim=1))):
        whole = spsa(network, x, y, 0.02, keys(x), norm=norm, **same)
        parts = spsa(network, x, y, 0.02, keys(x), norm=norm, images_at_once=10, **same)
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-9)
        assert (size(whole - x) <= 0.02 + 1e-9).all()
        assert (size(whole - x) > 0.01).all()
        assert whole.min() >= 0
        assert whole.max() <= 1


def test_spsa_finds_the_direction_of_the_gradient_that_advertorch_finds():
    from ima_dist.attacks.common import margin_loss
    from ima_dist.attacks.spsa import _estimate

    importlib.import_module("ima_dist.evaluation.advertorch_pgd")  # so that advertorch can be imported
    advertorch_spsa = importlib.import_module("advertorch.attacks.spsa")
    network, x, y, _ = linear(10)
    x = x.detach()
    with torch.no_grad():
        ours = _estimate(network, x, y, keys(x), 4096, 0.01, 4096)
    theirs = advertorch_spsa.spsa_grad(network, margin_loss, x, y, 0.01, 4096, 64)
    exact = network.weights[(network(x).scatter(1, y[:, None], -torch.inf)).argmax(1)] - network.weights[y]
    # Near a corner of the margin loss, where the strongest rival changes, no estimate is the gradient.
    cosines = [torch.cosine_similarity(e.flatten(1), exact.detach(), dim=1).mean() for e in (ours, theirs)]
    assert min(cosines) > 0.95
    assert abs(cosines[0] - cosines[1]) < 0.02


def test_signs_are_balanced_and_the_same_however_many_are_drawn():
    drawn = noise.signs(keys(torch.zeros(4)), (50, 3, 33), 0, torch.float32)
    assert drawn.shape == (4, 50, 3, 33)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 4 / drawn.numel() ** 0.5
    later = noise.signs(keys(torch.zeros(4)), (20, 3, 33), 30, torch.float32)
    assert torch.equal(drawn[:, 30:], later)
    products = torch.einsum("bnk,bmk->bnm", drawn.flatten(2), drawn.flatten(2)) / 99
    assert (products - torch.eye(50)).abs().max() < 0.6  # no vector is another's copy

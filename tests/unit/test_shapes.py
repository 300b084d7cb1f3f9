"""Working batches that keep their shape: the same results, the same counts, and where each form is used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ima_dist.attacks import bpgd, early_stopped_pgd, shapes, worst
from ima_dist.attacks.common import answered, predicted
from ima_dist.attacks.counting import Counted, Tally, counting_only
from ima_dist.config.presets import make_config
from ima_dist.core import norms
from ima_dist.core.noise import Phase
from ima_dist.methods import Batch, make_method
from ima_dist.models import fashion_mnist_cnn, moons_mlp
from tests.support import reference
from tests.support.fakecard import CUDA0, fake_card

NORMS = ("linf", "l2")
SIDES = ("midpoint", "inside", "outside")


def in_form(monkeypatch, keeps):
    monkeypatch.setattr(shapes, "keeps_shape", lambda model, x: keeps)


class Kinked(nn.Module):
    """Two inputs, three classes, smooth enough for every attack; ``hole``: NaN far from the origin."""

    def __init__(self, hole: float = float("inf")) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.inner = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.hole = hole

    def forward(self, x):
        return self.inner(3 * x).masked_fill(x.abs().amax(1, keepdim=True) > self.hole, torch.nan)


def problem(hole=float("inf")):
    network = Kinked(hole)
    x = torch.rand(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = network(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    torch.manual_seed(2)
    eps = torch.rand(60, dtype=torch.float64)
    return network, x, y, eps


@pytest.mark.parametrize("bisections", [0, 1, 6, 9])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("card", [False, True])
def test_one_shape_gives_the_plain_algorithms_points_and_counts(card, norm, bisections, monkeypatch):
    network, x, y, eps = problem()
    start = norms.random_start(x, eps, norm)
    for side in SIDES:
        options = {"norm": norm, "steps": 8, "bisections": bisections, "boundary_side": side, "box": (-1.0, 1.0)}
        point, crossed = reference.bpgd(network, x, y, eps, start=start, **options)
        in_form(monkeypatch, False)
        shrinking = bpgd(network, x, y, eps, start=start, **options)
        in_form(monkeypatch, True)
        if card:
            with fake_card() as counted:
                on_card = [t.to(CUDA0) for t in (x, y, eps, start)]
                network.to(CUDA0)
                counted.reset()
                found = bpgd(network, *on_card[:3], start=on_card[3], **options)
                assert not counted.waits
                got, hit, evaluations = found.x.cpu(), found.crossed.cpu(), int(found.evaluations)
                network.to("cpu")
        else:
            found = bpgd(network, x, y, eps, start=start, **options)
            got, hit, evaluations = found.x, found.crossed, found.evaluations
        assert torch.equal(hit, crossed)
        assert 0 < crossed.sum() < (y == network(x).argmax(1)).sum()
        torch.testing.assert_close(got, point, rtol=0, atol=1e-12)
        assert evaluations == shrinking.evaluations


@pytest.mark.parametrize("hole", [float("inf"), 0.8])
def test_padding_is_not_counted_among_what_an_attack_has_met(hole, monkeypatch):
    network, x, y, eps = problem(hole)
    start, totals = norms.random_start(x, eps, "linf"), []
    for keeps in (False, True):
        in_form(monkeypatch, keeps)
        watched = Counted(network, Tally("cpu"))
        bpgd(watched, x, y, eps, norm="linf", steps=8, start=start)
        totals.append(watched.tally.totals())
    assert torch.equal(*totals)
    assert totals[0][4] > 0 if hole < 1 else totals[0][4] == 0


def test_only_some_samples_of_a_pass_are_counted():
    watched = Counted(nn.Identity(), Tally("cpu"))
    watched(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
    with counting_only(watched, torch.tensor([True, False])):
        watched(torch.tensor([[torch.nan, 1.0], [torch.nan, 0.0]]))
    assert watched.tally.totals()[3:5].tolist() == [3, 2]
    with counting_only(nn.Identity(), torch.tensor([True])):
        pass


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "of", [{"method": "mma"}, *({"margin_update": "online", "margin_rule": rule} for rule in ("journal", "ame"))]
)
def test_methods_search_all_samples_with_the_same_result(of, norm, monkeypatch):
    network, x, y, eps = problem()
    config = make_config("moons", {"norm": norm, "eps_max": 0.5, "delta_eps": 0.1, "attack.steps": 6, **of})
    method, found = make_method(config, None), []
    batch = Batch(x, y, torch.arange(len(x)), eps.clamp_max(0.5), 0, 0, Phase.TRAIN)
    for keeps in (False, True):
        in_form(monkeypatch, keeps)
        watched = Counted(network, Tally("cpu"))
        found.append((method.attack(watched, batch), watched.tally.totals()))
    (shrinking, met), (whole, met_whole) = found
    torch.testing.assert_close(whole.inputs, shrinking.inputs, rtol=0, atol=1e-12)
    assert torch.equal(whole.noisy_of, shrinking.noisy_of)
    assert int(whole.evaluations) == shrinking.evaluations
    for ours, theirs in zip(whole.proposals, shrinking.proposals, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert torch.equal(met, met_whole)


@pytest.mark.parametrize("tau", [0, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_samples_that_have_stopped_may_stay_in_the_batch(norm, tau, monkeypatch):
    network, x, y, eps = problem()
    start, found = norms.random_start(x, eps, norm), []
    for keeps in (False, True):
        in_form(monkeypatch, keeps)
        watched = Counted(network, Tally("cpu"))
        result = early_stopped_pgd(watched, x, y, eps, norm=norm, tau=tau, steps=8, start=start)
        found.append((result, watched.tally.totals()))
    (shrinking, met), (whole, met_whole) = found
    torch.testing.assert_close(whole.x, shrinking.x, rtol=0, atol=1e-12)
    assert whole.evaluations == shrinking.evaluations < 8 * len(x)
    assert torch.equal(met, met_whole)


@pytest.mark.parametrize("card", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_worst_breaks_the_same_samples_whenever_it_looks(norm, card, monkeypatch):
    network, x, y, _ = problem()
    levels, found = [0.0, 0.05, 0.3], []
    starts = {eps: norms.random_start(x, eps, norm) for eps in levels}
    for keeps in (False, True):
        in_form(monkeypatch, keeps)
        watched = Counted(network, Tally("cpu"))
        labels, spent = worst(watched, x, y, levels, norm=norm, steps=23, rivals=1, start=starts.__getitem__)
        found.append((labels, int(spent), watched.tally.totals()))
    if card:
        with fake_card():
            on_card = worst(
                network.to(CUDA0), x.to(CUDA0), y.to(CUDA0), levels, norm=norm, steps=23, rivals=1,
                start=lambda eps: starts[eps].to(CUDA0),
            )  # fmt: skip
            found.append((on_card[0].cpu(), int(on_card[1]), found[0][2]))
    (labels, spent, met), *others = found
    assert 0 < (labels[1] != y).sum() < (labels[2] != y).sum() < len(y)
    for other, as_many, as_met in others:
        assert torch.equal(other, labels)
        assert as_many == spent
        assert torch.equal(as_met, met)


def test_what_was_answered_is_what_was_predicted():
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[nan, nan], [1.0, nan], [inf, 0.0], [-inf, -inf], [0.0, -inf], [1.0, 2.0], [3.0, 3.0]])
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.equal(answered(logits.to(kind)).nan_to_num(-1).long(), predicted(logits.to(kind)))
    many = torch.zeros(1, 5000, dtype=torch.bfloat16)
    many[0, 4999] = 1
    assert answered(many).item() == 4999


def test_the_shape_is_kept_where_launching_takes_longer_than_arithmetic():
    small, large = moons_mlp(), fashion_mnist_cnn()
    points, images = torch.rand(600, 2), torch.rand(4, 1, 28, 28)
    assert not shapes.keeps_shape(small, points[:128])  # no pass has been counted
    logits = shapes.passed(small, points[:3])
    assert torch.equal(logits, small(points[:3]))
    shapes.passed(large, images)
    assert shapes.keeps_shape(small, points[:128])
    assert not shapes.keeps_shape(small, points)
    assert not shapes.keeps_shape(small, points[:0])
    assert not shapes.keeps_shape(large, images)
    assert shapes.keeps_shape(Counted(small, Tally("cpu")), points[:128])
    assert not shapes.keeps_shape(lambda x: x, points)
    with fake_card():
        assert shapes.keeps_shape(small, points.to(CUDA0))
        assert shapes.keeps_shape(large, images.to(CUDA0))
        assert not shapes.keeps_shape(large, torch.zeros(2048, 1, 28, 28, device="cuda"))


def test_a_network_is_passed_once_whether_its_pass_is_counted_or_not():
    class Passes(nn.Module):
        passes = 0

        def forward(self, x):
            self.passes += 1
            return torch.stack([x.sum(1), -x.sum(1)], 1)

    network = Passes()
    for number in (1, 2):
        shapes.passed(network, torch.rand(3, 2))
        assert network.passes == number

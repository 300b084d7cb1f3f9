"""The attack on a whole curve: at least as strong as the one on its largest radius, and exact in what it says."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits, make_moons
from torch import nn

from ima_dist.attacks import worst
from ima_dist.attacks.curve import FMN_SHARE, CurveResult, worst_curve
from ima_dist.attacks.minimal import STARTS, minimal
from ima_dist.core import norms

NORMS = ("linf", "l2")
STEPS = 12


@functools.cache
def trained(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, tuple[float, float] | None, list[float]]:
    """Network, x, y, box and levels, float64."""
    torch.manual_seed(0)
    if name == "moons":
        points, labels = make_moons(600, noise=0.1, random_state=0)
        x, y = torch.tensor(points), torch.tensor(labels)
        model, box, levels = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2)), None, [0.0, 0.1, 0.2, 0.3]
    else:
        images, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(images) / 16, torch.tensor(labels)
        model, box, levels = (
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
            (0.0, 1.0),
            [0.0, 0.04, 0.1],
        )
    model = model.double()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x[:80], y[:80], box, levels


def radii(name: str, norm: str) -> list[float]:
    """The levels of a network in ``norm``."""
    factor = 3.0 if (name, norm) == ("digits", "l2") else 1.0
    return [factor * eps for eps in trained(name)[4]]


def starts(x: torch.Tensor, norm: str) -> Callable[[float, int], torch.Tensor]:
    def start(eps: float, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(number)
        uniforms = torch.rand(x.shape, generator=generator, dtype=x.dtype)
        return norms.to_ball(uniforms, torch.randn(x.shape, generator=generator, dtype=x.dtype), eps, norm)

    return start


def attacked(name: str, norm: str) -> CurveResult:
    model, x, y, box, _ = trained(name)
    return worst_curve(model, x, y, radii(name, norm), norm=norm, steps=STEPS, start=starts(x, norm), box=box)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["moons", "digits"])
def test_it_breaks_what_the_strong_attack_breaks_at_the_largest_radius(name, norm):
    model, x, y, box, _ = trained(name)
    largest, start = radii(name, norm)[-1], starts(x, norm)
    by_worst, _ = worst(model, x, y, [largest], norm=norm, steps=STEPS, start=lambda eps: start(eps, 0), box=box)
    found = attacked(name, norm)
    broken = by_worst[0] != y
    assert broken.any()
    assert not broken.all()
    assert not (broken & (found.predictions[-1] == y)).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["moons", "digits"])
def test_what_it_says_of_a_sample_agrees(name, norm):
    model, x, y, _, _ = trained(name)
    found = attacked(name, norm)
    right = found.predictions == y
    assert torch.equal(found.predictions[0], model(x).argmax(1))
    assert not (right[1:] & ~right[:-1]).any(), "a broken sample came back at a larger radius"
    assert torch.equal(~right, torch.stack([found.distance <= eps for eps in radii(name, norm)]))
    # Implied: right, not attacked, and so at every smaller radius; never at the largest, nor without noise.
    assert not (found.implied & ~right).any()
    assert not found.implied[-1].any()
    assert not found.implied[0].any()
    assert found.implied[1].any()
    assert not (found.implied[2:] & ~found.implied[1:-1] & right[1:-1]).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["moons", "digits"])
def test_radii_attacked_together_give_what_one_after_the_other_gives(name, norm):
    model, x, y, box, _ = trained(name)
    positive, start = radii(name, norm)[1:], starts(x, norm)
    settings = {"norm": norm, "steps": round(FMN_SHARE * STEPS), "box": box, "enough": positive[0]}
    bound = minimal(model, x, y, start=lambda number: start(positive[-1], number), **settings)
    label, distance = bound.predicted.clone(), bound.distance.clone()
    survived = torch.zeros_like(distance)
    for eps in reversed(positive):
        rows = ((distance > eps) & (survived == 0)).nonzero()[:, 0]
        options = {"norm": norm, "steps": STEPS, "box": box, "start": lambda eps, rows=rows: start(eps, 0)[rows]}
        (found,), _ = worst(model, x[rows], y[rows], [eps], **options)
        broken = found != y[rows]
        label[rows[broken]], distance[rows[broken]], survived[rows[~broken]] = found[broken], eps, eps
    expected = torch.stack([torch.where(distance <= eps, label, y) for eps in radii(name, norm)])
    result = attacked(name, norm)
    assert torch.equal(result.predictions, expected)
    assert torch.equal(result.implied[1:], torch.stack([survived > eps for eps in positive]))
    assert len(survived.unique()) > 2, "several radii"


def test_more_radii_take_larger_batches_and_not_more_of_them():
    model, x, y, box, _ = trained("moons")
    batches = 0

    def counting(points: torch.Tensor) -> torch.Tensor:
        nonlocal batches
        batches += 1
        return model(points)

    taken = []
    for levels in ([0.3], [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]):
        batches = 0
        worst_curve(counting, x, y, levels, norm="linf", steps=100, start=starts(x, "linf"), box=box)
        taken.append(batches)
    assert taken[1] < 2 * taken[0]


def test_rivals_run_at_once_if_few_samples_are_left():
    model, x, y, box, _ = trained("digits")
    batches: list[int] = []

    def counting(points: torch.Tensor) -> torch.Tensor:
        batches.append(len(points))
        return model(points)

    right = (model(x).argmax(1) == y).nonzero()[:3, 0]
    labels = ((y + 1) % 10).index_copy(0, right, y[right])
    found = worst_curve(counting, x, labels, [1e-4], norm="linf", steps=STEPS, start=starts(x, "linf"), box=box)
    assert (found.predictions[0] == labels).sum() == 3
    # Three rivals from two starts, a third of the steps each, and the last iterate.
    assert batches.count(2 * 3 * 3) == STEPS // 3 + 1
    assert max(batches) == len(x)


@pytest.mark.parametrize("name", ["moons", "digits"])
def test_it_counts_what_it_spends_and_spends_little_on_what_is_broken(name):
    model, x, y, box, _ = trained(name)
    passed = 0

    def counting(points: torch.Tensor) -> torch.Tensor:
        nonlocal passed
        passed += len(points)
        return model(points)

    options = {"norm": "linf", "steps": 100, "start": starts(x, "linf"), "box": box}
    found = worst_curve(counting, x, y, [0.0, 100.0], **options)
    assert found.evaluations == passed
    if box is None:
        # FMN breaks nearly all from one start, so that few are left for the strong attack.
        assert passed < 0.5 * len(x) * STARTS * FMN_SHARE * 100


def test_a_sample_alone_has_the_result_that_it_has_in_a_batch():
    model, x, y, box, levels = trained("digits")
    start = starts(x, "linf")
    whole = attacked("digits", "linf")
    for i in (0, 17, 41):
        one = slice(i, i + 1)
        alone = worst_curve(
            model, x[one], y[one], levels, norm="linf", steps=STEPS, box=box,
            start=lambda eps, number, one=one: start(eps, number)[one],
        )  # fmt: skip
        assert torch.equal(alone.predictions[:, 0], whole.predictions[:, i])
        torch.testing.assert_close(alone.distance[0], whole.distance[i], rtol=0, atol=1e-12)


def test_no_empty_batch_is_passed_on():
    class Picky(nn.Linear):
        def forward(self, x):
            assert len(x)
            return super().forward(x)

    network, x = Picky(4, 5), torch.rand(6, 4)
    wrong = (network(x).argmax(1) + 1) % 5
    found = worst_curve(network, x, wrong, [0.0, 0.1], norm="linf", steps=2)
    assert (found.predictions != wrong).all()
    assert (found.distance == 0).all()
    only_clean = worst_curve(network, x, wrong, [0.0], norm="linf")
    assert only_clean.evaluations == 6


def test_levels_must_ascend():
    with pytest.raises(ValueError, match="ascend"):
        worst_curve(nn.Linear(2, 2), torch.rand(3, 2), torch.zeros(3).long(), [0.2, 0.1], norm="l2")

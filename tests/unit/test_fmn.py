"""FMN against distances that are known, and against PGD at the distances that it finds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ima_dist.attacks import fmn, pgd
from ima_dist.core import norms
from tests.support.hostile import Times

NORMS = ("linf", "l2")


def linear(features: int, classes: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(features, classes).double()


def nearest_plane(model: nn.Linear, x: torch.Tensor, y: torch.Tensor, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance (B,) to the nearest of the planes between the true class and another, and that class (B,)."""
    logits, w = model(x).detach(), model.weight.detach()
    gaps = logits.gather(1, y[:, None]) - logits
    slopes = (w[y][:, None] - w[None]).flatten(2).norm(1 if norm == "linf" else 2, dim=2)
    found = (gaps / slopes.clamp_min(1e-300)).scatter(1, y[:, None], float("inf")).min(1)
    return found.values, found.indices


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_linear_networks_distances_are_met(norm, classes):
    model, x = linear(6, classes), torch.randn(300, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    wanted, rival = nearest_plane(model, x, y, norm)
    found = fmn(model, x, y, norm=norm, steps=40, rival=rival)
    assert (model(found.x).argmax(1) != y).all()
    assert torch.equal(model(found.x).argmax(1), found.predicted)
    torch.testing.assert_close(norms.length(found.x - x, norm), found.distance)
    assert (found.distance >= wanted * (1 - 1e-9)).all()
    assert (found.distance <= wanted * 1.01).all()
    assert found.evaluations == 47 * 300
    # Without an aim the gradient may lead to another class than the nearest.
    unaimed = fmn(model, x, y, norm=norm, steps=40).distance / wanted
    assert unaimed.median() < 1.01
    assert unaimed.max() < 3


@pytest.mark.parametrize("norm", NORMS)
def test_it_does_not_depend_on_the_units_of_the_data(norm):
    model, x = linear(6, 3), torch.randn(50, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    first = fmn(model, x, y, norm=norm)
    scaled = fmn(lambda t: model(t / 1000), 1000 * x, y, norm=norm)
    torch.testing.assert_close(scaled.distance, 1000 * first.distance, rtol=1e-9, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_points_stay_in_the_box(norm):
    model, x = linear(6, 3), torch.rand(200, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    found = fmn(model, x, y, norm=norm, box=(0.0, 1.0), start=10 * torch.randn_like(x))
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    broken = found.distance.isfinite()
    # From a start at the edge of the box, too.
    assert broken.any()
    assert (model(found.x[broken]).argmax(1) != y[broken]).all()
    assert torch.equal(found.x[~broken], x[~broken])
    assert torch.equal(found.predicted[~broken], y[~broken])


class Ring(nn.Module):
    """Class 1 within a shell around the origin, whose inner boundary is flat towards it; else class 0."""

    def forward(self, x):
        size = x.norm(dim=1)
        score = 1 - 10 * (size - 1).abs()
        return torch.stack([torch.zeros_like(score), score], 1)


def test_starts_on_both_sides_find_what_one_misses():
    """From x inside a shell the gradient leads to one side of it; a start elsewhere finds the other."""
    x = torch.tensor([[0.97, 0.0]], dtype=torch.float64)
    y = torch.tensor([1])
    alone = fmn(Ring(), x, y, norm="l2")
    torch.testing.assert_close(alone.distance, torch.tensor([0.07], dtype=torch.float64), rtol=0.02, atol=0)
    outer = fmn(Ring(), x, y, norm="l2", start=torch.tensor([[0.1, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(outer.distance, torch.tensor([0.13], dtype=torch.float64), rtol=0.02, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_at_the_distances_succeeds_and_far_below_does_not(norm):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    x = torch.randn(200, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    found = fmn(model, x, y, norm=norm, steps=50)
    sure = found.distance.isfinite()
    assert sure.float().mean() > 0.9
    below = pgd(model, x[sure], y[sure], found.distance[sure] * 0.98, norm=norm, steps=50)
    assert (model(below).argmax(1) != y[sure]).float().mean() < 0.05


def test_a_network_without_a_gradient_has_no_distance():
    model = Times(0.0)
    x = torch.randn(5, 3, dtype=torch.float64)
    found = fmn(
        lambda t: model(t) + torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), x, torch.zeros(5).long(), norm="linf"
    )
    assert found.distance.isinf().all()
    assert torch.equal(found.x, x)


@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_batch_and_one_sample_alone(norm):
    model, x = linear(6, 3), torch.randn(7, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    assert fmn(model, x[:0], y[:0], norm=norm).x.shape == (0, 6)
    whole = fmn(model, x, y, norm=norm)
    single = torch.cat([fmn(model, x[i : i + 1], y[i : i + 1], norm=norm).x for i in range(7)])
    torch.testing.assert_close(single, whole.x, rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    model, x = linear(6, 3), torch.randn(7, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="norm"):
        fmn(model, x, torch.zeros(7).long(), norm="l1")
    with pytest.raises(ValueError, match="start"):
        fmn(model, x, torch.zeros(7).long(), norm="l2", start=x[:3])


@pytest.mark.parametrize("norm", NORMS)
def test_walls_of_the_box_do_not_hold_it_up(norm):
    """Half of the values stand at a wall that the shortest way would cross: only the others can be changed."""
    torch.manual_seed(0)
    x = torch.full((50, 8), 0.5, dtype=torch.float64)
    x[:, :4] = 0.0
    weight = torch.cat([-0.5 - torch.rand(4), 0.5 + torch.rand(4)]).double()
    gap = torch.linspace(0.05, 0.2, 50, dtype=torch.float64)

    def model(points: torch.Tensor) -> torch.Tensor:
        rise = (points - x) @ weight if len(points) == 50 else torch.zeros(len(points))
        return torch.stack([gap, rise], 1)

    found = fmn(model, x, torch.zeros(50).long(), norm=norm, steps=12, box=(0.0, 1.0))
    free = weight[4:]
    wanted = gap / (free.abs().sum() if norm == "linf" else free.norm())
    torch.testing.assert_close(found.distance, wanted, rtol=0.03, atol=0)

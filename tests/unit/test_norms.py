from __future__ import annotations

import pytest
import torch

from ima_dist.core import norms
from tests.support import reference

NORMS = ("linf", "l2")


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [None, (-0.5, 0.5)])
@pytest.mark.parametrize("eps", [0.7, torch.rand(40, dtype=torch.float64), torch.tensor(0.7)])
def test_clip_projects_and_leaves_inner_points_alone(norm, box, eps):
    x = draw(40, 3, 4).clamp(-0.5, 0.5)
    far = x + draw(40, 3, 4, seed=1) * torch.logspace(-3, 1, 40, dtype=torch.float64)[:, None, None]
    out = norms.clip(far, x, eps, norm, box)
    torch.testing.assert_close(out, reference.project(far, x, eps, norm, box), rtol=0, atol=1e-12)
    radius = torch.as_tensor(eps, dtype=x.dtype).expand(40)
    assert (norms.length(out - x, norm) <= radius + 1e-12).all()
    if box is None:
        inner = norms.length(far - x, norm) < radius - 1e-12
        assert inner.any()
        assert torch.equal(out[inner], far[inner])
    else:
        assert out.min() >= -0.5
        assert out.max() <= 0.5


def test_clip_of_a_sample_outside_the_box_ends_in_the_box():
    x = torch.tensor([[2.0, -3.0, 0.5]])
    out = norms.clip(x + 0.1, x, 0.2, "linf", (0.0, 1.0))
    torch.testing.assert_close(out, torch.tensor([[1.0, 0.0, 0.6]]))


@pytest.mark.parametrize("norm", NORMS)
def test_zero_radius_gives_back_the_sample(norm):
    x = draw(8, 5, dtype=torch.float32)
    torch.testing.assert_close(norms.clip(x + 1, x, 0.0, norm, None), x, rtol=0, atol=3e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_a_radius_of_another_type_does_not_change_the_samples_type(norm):
    x = draw(4, 3, dtype=torch.float32)
    eps = torch.rand(4, dtype=torch.float64)
    assert norms.clip(x + 1, x, eps, norm, None).dtype == torch.float32
    assert norms.random_start(x, eps, norm).dtype == torch.float32


@pytest.mark.parametrize("norm", NORMS)
def test_select_equals_the_same_rows(norm):
    x, far = draw(20, 3), 3 * draw(20, 3, seed=1)
    rows = torch.tensor([3, 17, 4])
    for eps in (0.3, torch.rand(20, dtype=torch.float64)):
        balls = norms.Balls(x, eps, norm, (-1.0, 1.0))
        assert torch.equal(balls.select(rows).clip(far[rows]), balls.clip(far)[rows])


@pytest.mark.parametrize("norm", NORMS)
def test_length_is_the_vector_norm(norm):
    delta = draw(10, 2, 3)
    order = torch.inf if norm == "linf" else 2
    expected = torch.tensor([torch.linalg.vector_norm(d, order) for d in delta], dtype=torch.float64)
    torch.testing.assert_close(norms.length(delta, norm), expected)


def test_ascent():
    gradient = draw(10, 2, 3)
    gradient[4] = 0
    assert torch.equal(norms.ascent(gradient, "linf"), gradient.sign())
    unit = norms.ascent(gradient, "l2")
    torch.testing.assert_close(unit, reference.direction(gradient, "l2"), rtol=0, atol=1e-14)
    assert torch.equal(unit[4], torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e-20, 1e-30, 1e-38, 1e30])
def test_l2_ascent_keeps_the_direction_of_float32_gradients_whose_squares_do_not_fit(size):
    direction = draw(6, 50)
    unit = norms.ascent((direction * size).float(), "l2").double()
    expected = direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_start_is_uniform_in_the_l2_ball(dimension):
    torch.manual_seed(0)
    xi = norms.random_start(torch.zeros(20000, dimension, dtype=torch.float64), 2.0, "l2")
    # The share of the volume within radius r is (r/ε)^d, so this is uniform in [0, 1].
    share = (norms.length(xi, "l2") / 2.0).pow(dimension)
    assert share.max() <= 1 + 1e-12
    grid = torch.linspace(0, 1, 20000, dtype=torch.float64)
    assert (share.sort().values - grid).abs().max() < 0.015  # Kolmogorov: 0.0138 has p = 0.001.
    assert xi.mean(0).abs().max() < 0.05


def test_start_is_uniform_in_the_linf_ball():
    torch.manual_seed(0)
    eps = torch.rand(20000, dtype=torch.float64) + 0.1
    xi = norms.random_start(torch.zeros(20000, 3, dtype=torch.float64), eps, "linf") / eps[:, None]
    grid = torch.linspace(-1, 1, 60000, dtype=torch.float64)
    assert (xi.flatten().sort().values - grid).abs().max() < 0.02

from __future__ import annotations

import pytest
import torch

from ima_dist.core import noise

MASK = (1 << 64) - 1


def splitmix64_finaliser(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def keys(n=64, seed=0, epoch=0, phase=noise.Phase.TRAIN, first=0):
    return noise.sample_keys(seed, epoch, phase, torch.arange(first, first + n))


def test_mix64_is_the_splitmix64_finaliser():
    values = [0, 1, 2, 0x9E3779B97F4A7C15, 1 << 63, MASK, 0xDEADBEEFCAFEBABE]
    values += [splitmix64_finaliser(i) for i in range(500)]
    signed = [v - (1 << 64) if v >> 63 else v for v in values]
    mixed = noise.mix64(torch.tensor(signed)).tolist()
    assert [m & MASK for m in mixed] == [splitmix64_finaliser(v) for v in values]


def test_the_generator_gives_splitmix64s_published_numbers():
    # First outputs for seed 1234567 of the authors' splitmix64.c: counter times the golden ratio, mixed.
    state = torch.tensor([1234567])
    gamma = 0x9E3779B97F4A7C15 - (1 << 64)
    outputs = noise.mix64(state + torch.arange(1, 4) * gamma).tolist()
    assert [o & MASK for o in outputs] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_does_not_depend_on_the_batch(norm):
    x = torch.zeros(50, 3, 5, dtype=torch.float64)
    eps = torch.rand(50, dtype=torch.float64)
    indices = torch.randperm(1000)[:50]
    whole = noise.start(noise.sample_keys(7, 3, noise.Phase.TRAIN, indices), x, eps, norm)
    order = torch.randperm(50)
    parts = [
        noise.start(noise.sample_keys(7, 3, noise.Phase.TRAIN, indices[rows]), x[rows], eps[rows], norm)
        for rows in order.split([1, 20, 29])
    ]
    # To rounding: on some processors a vector's last entries go through another pow, of the L2 radius, than the rest.
    torch.testing.assert_close(torch.cat(parts), whole[order], rtol=1e-14, atol=0)
    again = noise.start(noise.sample_keys(7, 3, noise.Phase.TRAIN, indices), x, eps, norm)
    assert torch.equal(again, whole)


def test_noise_does_not_depend_on_how_many_numbers_are_drawn_together(monkeypatch):
    expected = noise.uniform(keys(7), (3, 5), torch.float64)
    for together in (1, 20, 45):
        monkeypatch.setattr(noise, "_ON_CPU", together)
        assert torch.equal(noise.uniform(keys(7), (3, 5), torch.float64), expected)
    assert noise.uniform(keys(0), (3, 5), torch.float64).shape == (0, 3, 5)


def test_float64_values_stay_what_they_were():
    x = torch.zeros(1, 2, dtype=torch.float64)
    key = noise.sample_keys(3, 2, noise.Phase.MARGIN, torch.tensor([11]))
    # Computed with Python's integers from the definition in the module's docstring.
    golden = 0x9E3779B97F4A7C15
    expected = 0
    for part in (3, 2, int(noise.Phase.MARGIN)):
        expected = splitmix64_finaliser((expected + part + golden) & MASK)
    expected = splitmix64_finaliser((expected + splitmix64_finaliser((11 + golden) & MASK)) & MASK)
    assert key.item() & MASK == expected
    uniforms = [(splitmix64_finaliser((expected + i * golden) & MASK) >> 11) * 2.0**-53 for i in (1, 2)]
    assert noise.uniform(key, (2,), torch.float64).tolist() == [uniforms]
    assert noise.start(key, x, 1.0, "linf").tolist() == [[2 * u - 1 for u in uniforms]]


def test_every_part_of_the_key_matters():
    streams = [
        keys(),
        keys(seed=1),
        keys(epoch=1),
        keys(seed=1, epoch=1),
        keys(phase=noise.Phase.MARGIN),
        keys(phase=noise.Phase.EVALUATE),
        keys(first=64),
    ]
    assert len(torch.cat(streams).unique()) == 64 * len(streams)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_are_uniform(dtype):
    u = noise.uniform(keys(2000), (50,), dtype).double().flatten()
    assert u.min() >= 0
    assert u.max() <= 1
    assert (u.sort().values - torch.linspace(0, 1, len(u), dtype=torch.float64)).abs().max() < 0.01
    assert abs(u.mean() - 1 / 2) < 0.005
    assert abs(u.var() - 1 / 12) < 0.002


@pytest.mark.parametrize("size", [2, 7])
def test_the_l2_start_is_uniform_in_the_ball(size):
    x = torch.zeros(20000, size, dtype=torch.float64)
    xi = noise.start(keys(20000), x, 1.0, "l2")
    share = xi.norm(dim=1).pow(size)
    assert (share.sort().values - torch.linspace(0, 1, 20000, dtype=torch.float64)).abs().max() < 0.02
    # Isotropic: the covariance of the uniform ball is I / (d + 2).
    covariance = xi.T @ xi / len(xi)
    assert (covariance - torch.eye(size, dtype=torch.float64) / (size + 2)).abs().max() < 0.01
    assert xi.mean(0).abs().max() < 0.02


def test_streams_of_neighbouring_samples_epochs_and_seeds_are_uncorrelated():
    u = noise.uniform(keys(500), (400,), torch.float64) - 0.5
    later = noise.uniform(keys(500, epoch=1), (400,), torch.float64) - 0.5
    other = noise.uniform(keys(500, seed=1), (400,), torch.float64) - 0.5
    for a, b in [(u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u, later), (u, other)]:
        assert abs(12 * (a * b).mean()) < 0.01  # The standard deviation is 1 / √200000 = 0.0022.

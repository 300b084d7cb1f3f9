"""Randomised smoothing: bounds, decisions, noise, and certificates against an attack on the smoothed classifier."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from ima_dist.attacks.smoothing import ABSTAINS, certify, counted, decide, lower_bound, smoothed
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.smoothing import sigma_of
from ima_dist.core import noise, norms
from ima_dist.methods import make_method
from ima_dist.methods.base import Batch
from ima_dist.results import certificates
from tests.support.networks import linear

SIGMA = 0.5


def keys(count: int) -> Tensor:
    return noise.sample_keys(0, 0, noise.Phase.SMOOTH, torch.arange(count))


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("trials", [10, 1000])
def test_bounds_are_scipys(trials, alpha):
    successes = np.arange(trials + 1)
    found = lower_bound(successes, trials, alpha)
    for k in (0, 1, trials // 3, trials // 2, trials - 1, trials):
        test = stats.binomtest(k, trials, alternative="greater")
        wanted = test.proportion_ci(confidence_level=1 - alpha, method="exact").low
        assert found[k] == pytest.approx(wanted, abs=1e-12)
    radius = certify(successes, trials, sigma=SIGMA, alpha=alpha)
    assert (radius >= 0).all()
    assert (np.diff(radius) >= 0).all()
    assert ((radius > 0) == (found > 0.5)).all()
    # All draws: p = α^(1/n).
    assert radius[-1] == pytest.approx(SIGMA * stats.norm.ppf(alpha ** (1 / trials)))


def test_it_abstains_where_the_test_of_scipy_does():
    counts = np.array([[k, 100 - k, 0] for k in range(101)] + [[40, 25, 35], [0, 0, 0]])
    found = decide(counts, 0.05)
    for row, answer in zip(counts, found, strict=True):
        top, second = sorted(row)[:-3:-1]
        sure = top and stats.binomtest(int(top), int(top + second)).pvalue <= 0.05
        assert answer == (row.argmax() if sure else ABSTAINS)


def test_noise_is_normal_keyed_and_the_same_in_any_pieces():
    drawn = noise.normals(keys(50), (40, 5, 3), 0, torch.float64)
    assert drawn.shape == (50, 40, 5, 3)
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(torch.corrcoef(drawn[:, 0].flatten(1).T)[0, 1])) < 0.5
    assert torch.equal(drawn[3:5, 10:20], noise.normals(keys(50)[3:5], (10, 5, 3), 10, torch.float64))
    assert len(torch.unique(drawn)) == drawn.numel()


def test_a_linear_classifier_is_certified_up_to_its_distance():
    """Its smoothed classifier has the same boundary, at σ Φ⁻¹ of the probability; the bound is just below."""
    network, x, y, distances = linear(2, (2,), samples=60)
    found = smoothed(network, x, keys(60), sigma=0.1, draws=4000, alpha=0.001)
    held = found.certified >= 0
    assert held.sum() > 20
    assert (found.certified[held] == y.numpy()[held]).all()
    exact = distances["l2"].numpy()
    assert (found.radius <= exact * 1.0001).all()
    near = held & (exact > 0.04) & (exact < 0.2)
    assert near.sum() > 10
    assert (found.radius[near] > 0.7 * exact[near]).all()
    assert (found.prediction[exact > 0.04] == y.numpy()[exact > 0.04]).all()
    parts = [smoothed(network, x[i : i + 7], keys(60)[i : i + 7], sigma=0.1, draws=4000, alpha=0.001, at_once=33)
             for i in range(0, 60, 7)]  # fmt: skip
    assert np.array_equal(np.concatenate([part.votes for part in parts]), found.votes)
    assert np.array_equal(np.concatenate([part.prediction for part in parts]), found.prediction)


def test_answers_that_are_not_finite_are_for_no_class():
    class Broken(nn.Module):
        def forward(self, x):
            logits = torch.stack([x[:, 0], -x[:, 0]], 1)
            return torch.where((x[:, :1] > 0), torch.nan, logits)

    votes = counted(Broken(), torch.zeros(2, 3), keys(2), sigma=1.0, draws=500)
    assert (votes[:, 0] == 0).all()
    assert (votes[:, 1] < 300).all()
    assert (votes[:, 1] > 200).all()
    found = smoothed(Broken(), torch.zeros(2, 3), keys(2), sigma=1.0, draws=500, alpha=0.001)
    assert (found.certified == ABSTAINS).all()


def small() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained under noise on three overlapping clouds, and test samples."""
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]], dtype=torch.float64)
    y = torch.arange(600) % 3
    x = centres[y] + 0.3 * torch.randn(600, 2, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x + SIGMA * torch.randn_like(x)), y).backward()
        optimizer.step()
    return network, x[:60], y[:60]


def attacked(network: nn.Module, x: Tensor, y: Tensor, eps: float, draws: int) -> Tensor:
    """PGD under L2 on the smoothed classifier: gradients of its mean probability over the noise of the certificate."""
    drawn = SIGMA * noise.normals(keys(len(x)), (draws, *x.shape[1:]), 0, x.dtype)
    balls, adv = norms.Balls(x, eps, "l2", None), x
    for _ in range(15):
        point = adv.clone().requires_grad_()
        mean = network((point[:, None] + drawn).flatten(0, 1)).softmax(1).view(len(x), draws, -1).mean(1)
        (gradient,) = torch.autograd.grad(-mean.gather(1, y[:, None]).log().sum(), point)
        adv = balls.step(adv, gradient, 0.25)
    return adv


def test_certified_accuracy_is_never_above_the_accuracy_under_an_attack():
    network, x, y = small()
    how = {"sigma": SIGMA, "draws": 1000}
    found = smoothed(network, x, keys(60), alpha=0.001, **how)
    right = torch.from_numpy(found.certified) == y
    shares = []
    for eps in (0.0, 0.25, 0.5, 0.75, 1.0):
        certified = right & (torch.from_numpy(found.radius) >= eps)
        adv = attacked(network, x, y, eps, 200)
        assert (torch.linalg.vector_norm(adv - x, dim=1) <= eps + 1e-9).all()
        answers = counted(network, adv, keys(60), **how).argmax(1)
        assert not (certified & (answers != y)).any(), f"a certificate at {eps} does not hold"
        shares.append((float(certified.double().mean()), float((answers == y).double().mean())))
    assert all(certified <= robust for certified, robust in shares)
    assert shares[0][0] > 0.8 > shares[-1][1], "the attack breaks some, so that it would find a wrong certificate"


def test_gaussian_noise_in_training_is_that_of_smoothing():
    config = make_config("moons", {"method": "rand", "rand.kind": "gaussian", "eps_max": 0.4})
    assert sigma_of(config) == 0.4
    x, y = torch.zeros(3000, 2, dtype=torch.float64), torch.zeros(3000, dtype=torch.int64)
    batch = Batch(x, y, torch.arange(3000), None, 0, 1, noise.Phase.TRAIN)
    made = make_method(config, (0.0, 0.1)).attack(nn.Identity(), batch)
    assert torch.equal(made.inputs[:3000], x)
    assert stats.kstest(made.noisy.flatten().numpy() / 0.4, "norm").pvalue > 1e-3
    uniform = make_config("moons", {"method": "rand"})
    assert float(make_method(uniform, None).attack(nn.Identity(), batch).noisy.abs().max()) <= 0.3
    assert config.fingerprint() != make_config("moons", {"method": "rand", "eps_max": 0.4}).fingerprint()


def test_the_noise_of_the_certificate_must_be_known():
    with pytest.raises(ConfigError, match=r"needs --smoothing\.sigma"):
        make_config("moons", {"eval.attacks": ["smoothing"]})
    config = make_config("moons", {"eval.attacks": ["smoothing"], "smoothing.sigma": 0.2})
    assert sigma_of(config) == 0.2
    assert config.fingerprint() == make_config("moons").fingerprint()
    with pytest.raises(ConfigError, match=r"smoothing\.draws"):
        make_config("moons", {"smoothing.draws": 10**6})


def test_accuracies_and_the_curve_are_those_of_the_rows():
    table = pa.table(
        {
            "epoch": [2] * 5,
            "label": [0, 1, 2, 0, 1],
            "prediction": [0, 1, 1, -1, 1],
            "certified": [0, 1, 1, -1, 1],
            "radius": [0.3, 0.1, 0.9, 0.0, 0.3],
        }
    )
    how = {"sigma": 0.25, "draws": 1000, "alpha": 0.001}
    entry = certificates.measure(table, [0.0, 0.1, 0.2, 0.5], order="first", **how)
    assert (entry.accuracy, entry.abstained) == (0.6, 0.2)
    assert entry.certified == (0.6, 0.6, 0.4, 0.0)
    assert certificates.entries({"certificates": [entry.model_dump(mode="json"), {"epoch": 0}]}) == [entry]
    radii, shares = certificates.curve(table.append_column("protocol", pa.repeat(entry.protocol, 5)), entry)
    assert radii.tolist() == [0.0, 0.1, 0.3]
    assert shares.tolist() == pytest.approx([0.6, 0.6, 0.4])

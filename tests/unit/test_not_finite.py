"""Gradients and logits that are NaN or infinite, samples of any shape and precision: no attack is fooled by them."""

import pytest
import torch
from torch import nn

from ima_dist.attacks import anpgd, bpgd, ddn, pgd, spsa, worst
from ima_dist.attacks.common import cross_entropy, finite, logits_and_gradient, misclassified, predicted
from ima_dist.config.presets import make_config
from ima_dist.core import noise
from ima_dist.data.types import Resident, Split
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.evaluation.autoattack import remarks, square_fits
from ima_dist.evaluation.gradients import gradient_counts
from ima_dist.results.doubts import doubts, gradient_doubts
from ima_dist.rundir.files import write_json
from ima_dist.rundir.run import Run
from ima_dist.training.numerics import NumericalError, check_gradient
from tests.support.hostile import Times
from tests.support.summaries import make_run

BOX = (0.0, 1.0)


class Root(nn.Module):
    """√x of positive pixels, then a linear layer; its gradient is NaN where a pixel is 0, unless ``safe``."""

    def __init__(self, inner: nn.Module, safe: bool) -> None:
        super().__init__()
        self.inner, self.safe = inner, safe

    def forward(self, x):
        under = torch.where(x > 0, x, torch.ones_like(x)) if self.safe else x
        return self.inner(torch.where(x > 0, under.sqrt(), torch.zeros_like(x)))


def dark_images(n: int = 24) -> tuple[torch.Tensor, torch.Tensor, nn.Module, nn.Module]:
    """Images whose border is exactly black, labels, and the same network with and without NaN gradients."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = torch.zeros(n, 1, 6, 6)
    x[:, 0, 1:5, 1:5] = 0.2 + 0.2 * y[:, None, None] + 0.1 * torch.rand(n, 4, 4, generator=generator)
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    y = Root(linear, safe=True)(x).argmax(1)
    return x, y, Root(linear, safe=False), Root(linear, safe=True)


def evaluated(attack: str, network: nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str, **options: object):
    config = make_config(
        "fashion_mnist", {"norm": norm, "eval.noise": [0.0, 0.1, 0.5], "eval.steps": 10, "eps_max": 0.3, **options}
    )
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(len(x)))
    found = EVALUATION_ATTACKS[attack](network, x, y, keys, config, BOX)
    return {eps: labels for (loss, eps), labels in found.items() if loss == "both"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["pgd100", "worst", "pgd-mma"])
def test_a_nan_gradient_breaks_as_many_samples_as_the_finite_gradient_of_the_same_function(attack, norm):
    x, y, broken, safe = dark_images()
    _, gradient = logits_and_gradient(broken, x, y, cross_entropy)
    assert gradient.isfinite().all()
    ours, right = (evaluated(attack, network, x, y, norm) for network in (broken, safe))
    for eps, labels in right.items():
        assert labels.min() >= 0
        assert (ours[eps] == y).sum() == (labels == y).sum(), (attack, norm, eps)
    assert (right[0.5] != y).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_training_attacks_stay_finite_and_in_ball_and_box(norm):
    x, y, broken, _ = dark_images()
    found = bpgd(broken, x, y, 0.3, norm=norm, box=BOX)
    points = [pgd(broken, x, y, 0.3, norm=norm, box=BOX), found.x]
    if norm == "l2":
        points.append(ddn(broken, x, y, box=BOX, max_norm=0.3).x)
    for point in points:
        assert point.isfinite().all()
        assert point.min() >= 0
        assert point.max() <= 1
        length = (point - x).flatten(1)
        size = length.abs().amax(1) if norm == "linf" else length.norm(dim=1)
        assert (size <= 0.3 + 1e-5).all()


def test_logits_that_are_not_finite_are_right_for_no_class():
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[nan, nan], [1.0, nan], [inf, 0.0], [-inf, -inf], [0.0, -inf], [1.0, 2.0]])
    assert predicted(logits).tolist() == [-1, -1, -1, -1, 0, 1]
    assert misclassified(logits, torch.zeros(6, dtype=torch.int64)).tolist() == [True, True, True, True, False, True]
    assert finite(torch.tensor([nan, inf, -inf, 2.0])).tolist() == pytest.approx([0.0, 1e15, -1e15, 2.0])


def test_a_network_that_returns_nan_under_noise_is_broken_there_not_of_class_0():
    class Fragile(nn.Module):
        def forward(self, x):
            logits = torch.stack([x.flatten(1).sum(1) + 10, x.flatten(1).sum(1)], 1)
            return logits.log() * torch.where(x.flatten(1).amax(1, keepdim=True) > 0.55, torch.nan, 1.0)

    x, y = torch.full((4, 1, 5, 5), 0.5), torch.zeros(4, dtype=torch.int64)
    for attack in ("pgd100", "worst", "white-noise"):
        found = evaluated(attack, Fragile(), x, y, "linf")
        assert (found[0.0] == 0).all()
        assert (found[0.5] == -1).all(), attack
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(4))
    assert spsa(Fragile(), x, y, 0.5, keys, norm="linf", box=BOX, samples=4, iterations=2).isfinite().all()
    predictions, _ = worst(Fragile(), x, y, [0.5], norm="linf", steps=3, box=BOX)
    assert (predictions[0] == -1).all()


@pytest.mark.parametrize(
    ("shape", "norm"),
    [((6,), "linf"), ((6,), "l2"), ((1, 7, 7), "l2"), ((1, 8, 10), "l2"), ((2, 3, 6, 6), "linf"), ((2, 3, 6, 6), "l2")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autoattack_takes_samples_of_any_shape_and_precision(shape, norm, dtype):
    torch.manual_seed(1)
    x = torch.rand(8, *shape, dtype=dtype)
    network = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4)).to(dtype)
    y = network(x).argmax(1)
    found = evaluated("autoattack", network, x, y, norm, **{"eval.noise": [0.0, 0.02, 2.0]})
    assert (found[0.0] == y).all()
    assert (found[2.0] != y).any()
    # Exact on a linear network without walls: |w_i - w_y| in the dual norm is how fast a rival gains.
    weight = network[1].weight
    logits = network(x)
    gap = (logits.gather(1, y[:, None]) - logits).scatter(1, y[:, None], torch.inf)
    speed = (weight[None] - weight[y][:, None]).norm(1 if norm == "linf" else 2, dim=2)
    margin = (gap / speed.scatter(1, y[:, None], 1.0)).amin(1)
    assert (found[0.02] == y)[margin > 0.02].all()


def test_square_is_left_out_where_its_tiles_do_not_fit():
    sides = [side for side in range(1, 33) if not square_fits(side, side, "l2")]
    assert sides == [1, 2, 3, 4, 7, 8, 9, 12, 14, 18, 19, 24]
    assert square_fits(8, 8, "linf")
    assert not square_fits(10, 7, "l2") or 10 // 5 * (7 // 2) <= 7


def test_samples_without_a_gradient_are_counted_and_said():
    x, y, broken, safe = dark_images()
    config = make_config("fashion_mnist", {"eval.noise": [0.0, 0.1], "eps_max": 0.3})
    data = Resident(Split(x, y), "cpu", torch.float32, BOX)
    samples = torch.arange(0, 24, 2)

    def counted(network: nn.Module) -> dict[str, int]:
        return gradient_counts(network, data, samples, config, batch_size=5)

    assert counted(safe) == {"samples": 12, "zero": 0, "not_finite": 0, "bad_logits": 0}
    assert gradient_doubts({"3": counted(safe)}) == ()
    found = counted(broken)
    assert found == {"samples": 12, "zero": 0, "not_finite": 12, "bad_logits": 0}
    assert "100 % of the 12 attacked samples had NaN or infinity" in gradient_doubts({"3": found})[0]

    class Rounded(Root):
        def forward(self, x):
            return super().forward((x * 16).round() / 16)

    found = counted(Rounded(safe.inner, safe=True))
    assert (found["zero"], found["not_finite"]) == (12, 0)
    # Gradients whose norm advertorch takes for 0, or for infinity.
    right = {}
    l2 = make_config("fashion_mnist", {"norm": "l2", "eval.noise": [0.0, 0.2], "eps_max": 0.3})
    for factor, lost in ((1e-10, 12), (1.0, 0), (1e30, 12)):
        counts = gradient_counts(nn.Sequential(safe, Times(factor)), data, samples, l2, batch_size=5)
        assert counts["zero"] == lost
        right[factor] = int((evaluated("pgd100", nn.Sequential(safe, Times(factor)), x, y, "l2")[0.5] == y).sum())
    assert right[1e-10] == right[1e30] > right[1.0]
    # The newest epoch counts, and a file that was damaged raises neither doubts nor errors.
    sentences = gradient_doubts({"9": counted(safe), "10": found, "x": {}})
    assert [s.split(",")[0] for s in sentences] == ["100 % of the 12 attacked samples had no gradient"]
    assert gradient_doubts({"1": {"samples": "many"}}) == gradient_doubts({"1": None}) == gradient_doubts({}) == ()


class NanBeyond(nn.Module):
    """Class 0 everywhere; NaN where the first value is above 0.6."""

    def forward(self, x):
        first = x.flatten(1)[:, :1]
        return torch.cat([first * 0 + 1 + x.flatten(1)[:, 1:2], -first], 1) * torch.where(first > 0.6, torch.nan, 1.0)


def test_mma_takes_nan_logits_for_a_boundary():
    x, y = torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    start = torch.full_like(x, 0.2)
    found = anpgd(NanBeyond(), x, y, 0.2, norm="linf", max_eps=0.4, steps=1, start=start, box=BOX)
    assert found.crossed.all()
    torch.testing.assert_close(found.x[:, 0], torch.full((3,), 0.6), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("weight", "said"), [(0.5, "a square root at 0"), (1e6, r"a smaller --optimizer\.lr")])
def test_training_names_the_network_or_the_learning_rate(weight, said):
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, weight)
    network(torch.zeros(1, 2)).sum().sqrt().mul(torch.nan).backward()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(NumericalError, match=said):
        check_gradient(network, scaler, torch.ones(1), torch.arange(1), (1, 1))


def test_autoattacks_own_warnings_are_named_and_said(tmp_path, capsys):
    class Random(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4] + 0.2 * torch.rand(len(x), 4)

    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    honest = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    names = {}
    for kind, network in (("honest", honest), ("softmax", nn.Sequential(honest, nn.Softmax(1))), ("random", Random())):
        with remarks() as names[kind]:
            evaluated("autoattack", network, x, network(x).argmax(1), "l2", **{"eval.noise": [0.05]})
    assert names["honest"] == {"without_square"}
    assert names["softmax"] == {"without_square", "probabilities"}
    assert "random" in names["random"]
    assert "auto-attack" not in capsys.readouterr().err

    run = make_run(tmp_path / "run", "moons", {0.1: 0.5})
    for said, expected in ((["without_square"], 0), (["probabilities", "unknown"], 1), ([3], 0), ({"a": 1}, 0)):
        write_json(run.summary_path, {**run.summary(), "remarks": {str(run.config().epochs): {"autoattack": said}}})
        found = doubts(Run(run))
        assert len(found) == expected
        assert all(text == "AutoAttack warns of this network that its outputs are probabilities." for text in found)

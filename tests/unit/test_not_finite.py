"""Gradients and logits that are NaN or infinite, samples of any shape and precision: no attack is fooled by them."""

import pytest
import torch
from torch import nn

from ima_dist.attacks import anpgd, bpgd, ddn, pgd, spsa, worst
from ima_dist.attacks.common import cross_entropy, finite, logits_and_gradient, misclassified, predicted
from ima_dist.attacks.counting import COUNTS, Counted, Tally, put_back
from ima_dist.config.presets import make_config
from ima_dist.core import noise
from ima_dist.evaluation import autoattack as autoattack_module
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.evaluation.autoattack import remarks, square_fits
from ima_dist.results.doubts import doubts
from ima_dist.rundir.files import write_json
from ima_dist.rundir.run import Run
from ima_dist.training.counters import Counters
from ima_dist.training.numerics import NumericalError, check_gradient
from tests.support.evaluating import short_autoattack
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


@pytest.fixture(autouse=True)
def _few_iterations(monkeypatch):
    """What AutoAttack itself achieves: test_evaluation_attacks."""
    monkeypatch.setattr(autoattack_module, "AutoAttack", short_autoattack)


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


@pytest.mark.parametrize("attack", ["pgd100", "worst", "minimal", "pgd-mma", "autoattack"])
def test_a_masked_class_is_attacked_as_if_it_were_left_out(attack):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 5))

    class Masked(nn.Module):
        def forward(self, x):
            return inner(x).masked_fill(torch.arange(5) == 1, -torch.inf)

    class LeftOut(nn.Module):
        def forward(self, x):
            return inner(x)[:, [0, 2, 3, 4]]

    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, y_left = Masked()(x).argmax(1), LeftOut()(x).argmax(1)
    found, right = evaluated(attack, Masked(), x, y, "linf"), evaluated(attack, LeftOut(), x, y_left, "linf")
    assert {eps: (labels == y).tolist() for eps, labels in found.items()} == {
        eps: (labels == y_left).tolist() for eps, labels in right.items()
    }
    assert 0 < (found[0.1] == y).sum() < 12
    with remarks() as said:
        met = counted(attack, Masked(), x, y, "linf")
    assert (met["zero"], met["not_finite"], met["bad_logits"]) == (0, 0, 0)
    assert not said


def test_spsa_passes_over_probes_that_are_nan():
    class Walled(nn.Module):
        """NaN just outside the ball; class 1 where the mean exceeds 0.52."""

        def forward(self, x):
            flat = x.flatten(1)
            logits = torch.stack([0.52 - flat.mean(1), flat.mean(1) - 0.52], 1)
            return logits.masked_fill((flat > 0.5401).any(1, keepdim=True), torch.nan)

    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(3))
    found = spsa(Walled(), x, y, 0.015, keys, norm="linf", box=BOX, samples=8, iterations=5, delta=0.03, lr=0.005)
    assert found.isfinite().all()
    assert (predicted(Walled()(found)) == 0).all()


def test_square_is_left_out_where_its_tiles_do_not_fit():
    sides = [side for side in range(1, 33) if not square_fits(side, side, "l2")]
    assert sides == [1, 2, 3, 4, 7, 8, 9, 12, 14, 18, 19, 24]
    assert square_fits(8, 8, "linf")
    assert not square_fits(10, 7, "l2") or 10 // 5 * (7 // 2) <= 7


class Rounded(Root):
    def forward(self, x):
        return super().forward((x * 16).round() / 16)


def counted(attack: str, network: nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str) -> dict[str, int]:
    """What the attack met, summed over the noise levels; the results are those of the network itself."""
    watched = Counted(network, Tally("cpu"))
    ours, plain = (evaluated(attack, n, x, y, norm) for n in (watched, network))
    assert all(torch.equal(ours[eps], plain[eps]) for eps in plain)
    total = dict.fromkeys(COUNTS, 0)
    for counts in watched.counts().values():
        total = {name: total[name] + counts[name] for name in COUNTS}
    return total


@pytest.mark.parametrize("attack", ["pgd100", "worst", "minimal", "pgd-mma", "autoattack"])
def test_every_attack_counts_the_gradients_that_it_cannot_follow(attack):
    x, y, broken, safe = dark_images(12)
    found = counted(attack, safe, x, y, "linf")
    assert found["gradients"] > 10
    assert found["answers"] >= found["gradients"]
    assert [found[name] for name in ("zero", "not_finite", "bad_logits", "outside")] == [0, 0, 0, 0]
    found = counted(attack, broken, x, y, "linf")
    assert found["not_finite"] > 0
    assert found["zero"] == 0
    found = counted(attack, Rounded(safe.inner, safe=True), x, y, "linf")
    assert found["zero"] == found["gradients"] > 0


def test_pgd_counts_each_sample_in_each_step():
    x, y, _, safe = dark_images(12)
    # Two noise levels, two losses, ten steps; answers also to the clean samples and the results.
    expected = {"gradients": 2 * 2 * 10 * 12, "answers": 2 * 2 * 11 * 12 + 12}
    found = counted("pgd100", safe, x, y, "linf")
    assert {name: found[name] for name in expected} == expected
    assert counted("white-noise", safe, x, y, "linf") == {**dict.fromkeys(COUNTS, 0), "answers": 3 * 12}


def test_gradients_that_advertorch_takes_for_nothing_under_l2_are_counted_as_zero():
    x, y, _, safe = dark_images()
    right = {}
    for factor, lost in ((1e-10, 0.5), (1.0, 0.0), (1e30, 0.5)):
        network = nn.Sequential(safe, Times(factor))
        found = counted("pgd100", network, x, y, "l2")
        # Half of them are of the margin loss. Cross-entropy divides by the size of the logits, or saturates.
        assert found["zero"] / found["gradients"] >= lost
        assert lost or not found["zero"]
        right[factor] = int((evaluated("pgd100", network, x, y, "l2")[0.5] == y).sum())
    assert right[1e-10] == right[1e30] > right[1.0]


def test_results_outside_ball_or_box_are_put_back_and_counted():
    x = torch.full((5, 4), 0.5)
    adv = x + torch.tensor([0.1, 0.100000001, 0.3, -0.2, 0.0])[:, None]
    adv[4, 1] = torch.nan
    watched = Counted(nn.Identity(), Tally("cpu"))
    found = put_back(watched, adv, x, 0.1, "linf", (0.45, 0.55))
    assert int(watched.tally.totals()[COUNTS.index("outside")]) == 5
    torch.testing.assert_close(found, x + torch.tensor([0.05, 0.05, 0.05, -0.05, 0.0])[:, None])
    found = put_back(watched, adv, x, 0.1, "linf", None)
    assert int(watched.tally.totals()[COUNTS.index("outside")]) == 5 + 3
    assert torch.equal(found[:2], adv[:2])
    found = put_back(watched, adv, x, 0.1, "l2", None)
    torch.testing.assert_close((found - x).norm(dim=1), torch.tensor([0.1, 0.1, 0.1, 0.1, 0.0]))


def test_what_attacks_met_is_said_with_the_result(tmp_path):
    run = make_run(tmp_path / "run", "moons", {0.0: 0.9, 0.1: 0.5})
    plain = run.summary()

    def said(met: object, **more: object) -> list[str]:
        curves = [{**entry, "met": met} if entry["loss"] == "both" else entry for entry in plain["curves"]]
        write_json(run.summary_path, {**plain, "curves": curves if met else plain["curves"], **more})
        return [sentence.split(" gradients of")[0] for sentence in doubts(Run(run))]

    honest = {"gradients": 1000, "zero": 9, "not_finite": 0, "answers": 1200, "bad_logits": 0, "outside": 0}
    attack = plain["curves"][0]["attack"]
    assert said(honest) == []
    assert said({**honest, "zero": 30}) == [f"{attack}: 3 % of 2,000"]
    assert said({**honest, "not_finite": 1}) == [f"{attack}: 0.1 % of 2,000"]
    assert said({**honest, "bad_logits": 12}) == [f"{attack}: 1 % of 2,400 answers had NaN or infinite logits."]
    assert said({**honest, "outside": 2}) == [
        f"{attack}: 4 results lay outside the ball or the box, and were put back."
    ]
    # Counts of samples, which earlier versions made; the newest epoch counts.
    of_samples = {"samples": 12, "zero": 12, "not_finite": 0, "bad_logits": 0}
    assert said(None, gradients={"9": {"samples": 12}, "10": of_samples, "x": {}}) == ["All attacks: 100 % of 12"]
    for damaged in ({"1": {"samples": "many"}}, {"1": None}, {}, 3):
        assert said(None, gradients=damaged) == []
    # Attacks in training.
    write_json(run.summary_path, plain)
    run.write_history([{"epoch": 1}, {"epoch": 2, "met_gradients": 50, "met_zero": 5, "met_answers": 60}])
    assert doubts(Run(run))[0].startswith("Attacks in training: 10 % of 50 gradients")


def test_counts_in_training_continue_from_a_checkpoint():
    def attacked(counters: Counters, samples: int) -> None:
        counters.met.add_gradient(torch.tensor([0.0, 1.0, torch.nan]).repeat(samples // 3)[:, None])
        counters.met.add_logits(torch.tensor([[0.0, -torch.inf]]).repeat(samples, 1))

    first, second = Counters(torch.device("cpu")), Counters(torch.device("cpu"))
    attacked(first, 6)
    saved = first.state_dict()
    second.load_state_dict(saved)
    attacked(second, 3)
    found = {name: total for name, total in second.totals().items() if name.startswith("met_")}
    assert found == {"met_gradients": 9, "met_zero": 3, "met_not_finite": 3, "met_answers": 9, "met_bad_logits": 0}
    second.clear()
    assert set(second.totals().values()) == {0}
    # A checkpoint of an earlier version has none.
    second.load_state_dict({name: value for name, value in saved.items() if not name.startswith("met_")})
    assert second.totals()["met_gradients"] == 0


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

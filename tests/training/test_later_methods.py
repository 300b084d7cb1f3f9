"""The methods iaat, fat and nfgsm: their noisy samples and radii, and catastrophic overfitting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima_dist.attacks import early_stopped_pgd
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.core import norms
from ima_dist.core.noise import Phase
from ima_dist.methods import Batch, make_method
from ima_dist.results.doubts import doubts
from ima_dist.results.overfitting import Overfitting, overfitting, overfitting_doubts, watched_noise
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from tests.support import workers


def method(name, box=None, **options):
    options = {option.replace("__", "."): value for option, value in options.items()}
    return make_method(make_config("moons", {"method": name, "dtype": "float64", "norm": "linf", **options}), box)


def line(slope: float = 1.0) -> nn.Module:
    """Of two coordinates only the first counts: class 1 where it is positive."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-slope, 0.0], [slope, 0.0]]))
        model.bias.zero_()
    return model


def at(*first: float) -> Tensor:
    """Samples of class 1 whose first coordinate, the distance to the boundary, is given."""
    return torch.tensor([[value, 0.5] for value in first], dtype=torch.float64)


def batch(x: Tensor, margins: Tensor | None = None, epoch: int = 0) -> Batch:
    y = torch.ones(len(x), dtype=torch.int64)
    return Batch(x, y, torch.arange(len(x)) * 7, margins, seed=3, epoch=epoch, phase=Phase.TRAIN)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_iaat_moves_each_radius_by_what_pgd_breaks(norm):
    # So many steps that PGD reaches the far end of the ball: distances decide.
    chosen = method(
        "iaat", norm=norm, eps_max=0.4, delta_eps=0.1, iaat__smoothing=0.5, iaat__warmup=2, epochs=20,
        attack__steps=60, attack__step_scale=60.0,
    )  # fmt: skip
    x, before = at(0.5, 0.25, 0.15, 0.03, -0.1), torch.tensor([0.2, 0.2, 0.2, 0.05, 0.2], dtype=torch.float64)
    model = line()
    found = chosen.attack(model, batch(x, before, epoch=2))
    # Up; neither; down; down, but to 0 at the least; wrong without noise, so towards 0.
    wanted = torch.tensor([0.25, 0.2, 0.15, 0.025, 0.1], dtype=torch.float64)
    torch.testing.assert_close(found.proposals.values, wanted, rtol=0, atol=1e-12)
    assert found.proposals.correct.tolist() == [True, True, True, True, False]
    assert found.proposals.crossed.tolist() == [False, True, True, True, False]
    assert found.noisy_only
    torch.testing.assert_close(norms.length(found.inputs - x, norm), wanted, rtol=0, atol=1e-3)
    # Four are attacked at E + γ, three of them at E, all for training; each try ends with one pass more.
    assert found.evaluations == 5 + 4 * 61 + 3 * 61 + 5 * 60
    rows = chosen.loss(model(found.inputs), batch(x), found)
    torch.testing.assert_close(rows, F.cross_entropy(model(found.inputs), batch(x).y, reduction="none"))
    assert chosen.largest_margin == pytest.approx(0.4 + 18 * 0.05)
    assert chosen.first_margin == 0


def test_iaat_begins_with_one_radius():
    chosen = method("iaat", eps_max=0.4, epochs=20)
    assert chosen.warmup == 2
    assert method("iaat", eps_max=0.4, epochs=3).warmup == 1
    assert chosen.config.expansion == pytest.approx(0.4 * 1.9 / 8)
    found = chosen.attack(line(), batch(at(0.5, -0.1), torch.tensor([0.1, 0.1], dtype=torch.float64), epoch=1))
    assert found.proposals.values.tolist() == [0.4, 0.0]
    assert torch.equal(found.inputs[1], at(-0.1)[0])
    assert found.evaluations == 2 + 2 * 20


@pytest.mark.parametrize("tau", [0, 1, 2, 9])
def test_early_stopped_pgd_stops_tau_steps_beyond_the_boundary(tau):
    x = at(0.31, 0.12, -0.1, 0.9)
    y, start = torch.ones(4, dtype=torch.int64), torch.zeros(4, 2).double()
    # Ten steps of 0.1 in a ball of radius 0.5.
    settings = {"norm": "linf", "tau": tau, "steps": 10, "step_scale": 2.0, "start": start}
    found = early_stopped_pgd(line(), x, y, 0.5, **settings)
    # The first iterates beyond 0 are the 4th, the 2nd and the start itself; the last sample never gets there.
    steps = torch.tensor([min(4 + tau, 5), min(2 + tau, 5), min(tau, 5), 5]).double()
    torch.testing.assert_close(found.x[:, 0], x[:, 0] - 0.1 * steps, rtol=0, atol=1e-12)
    assert found.evaluations == sum(min(count + tau, 10) for count in (5, 3, 1)) + 10
    # A sample's result does not depend on the others.
    alone = early_stopped_pgd(line(), x[:1], y[:1], 0.5, **{**settings, "start": start[:1]})
    torch.testing.assert_close(alone.x, found.x[:1], rtol=0, atol=1e-12)


def test_fat_goes_further_beyond_the_boundary_late_in_training():
    chosen = method("fat", epochs=120)
    assert [chosen.tau(epoch) for epoch in (0, 49, 50, 89, 90, 119)] == [0, 0, 1, 1, 2, 2]
    assert method("fat", epochs=120, fat__tau=3).tau(0) == 3
    found = method("fat", eps_max=0.3).attack(line(), batch(at(0.1, 0.5, -0.1)))
    assert found.noisy_only
    assert found.correct.tolist() == [True, True, False]
    # The first has just crossed, after which adv would go on to the end of the ball.
    assert -0.06 - 1e-9 < float(found.inputs[0, 0]) < 0


def test_nfgsm_steps_from_strong_noise_and_may_leave_the_ball():
    x, eps = at(*torch.linspace(0.1, 0.9, 400).tolist()), 0.1
    found = method("nfgsm", eps_max=eps).attack(line(), batch(x))
    # The gradient has a sign in the first coordinate only: η − ε there, and η in the other.
    eta = batch(x).start(2 * eps, "linf")
    step = torch.tensor([eps, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found.inputs, x + eta - step, rtol=0, atol=1e-12)
    assert 2.9 * eps < float(norms.length(found.inputs - x, "linf").max()) <= 3 * eps
    assert found.noisy_only
    assert found.evaluations == 800
    boxed = method("nfgsm", box=(0.0, 1.0), eps_max=eps).attack(line(), batch(x)).inputs
    assert 0 <= float(boxed.min()) <= float(boxed.max()) <= 1
    less = method("nfgsm", eps_max=eps, nfgsm__noise=0.0).attack(line(), batch(x)).inputs
    torch.testing.assert_close(less, x - step)


def test_nfgsm_needs_linf():
    with pytest.raises(ConfigError, match="add --norm linf"):
        make_config("moons", {"method": "nfgsm", "norm": "l2"})


def history(*accuracies):
    names = ("epoch", "val_accuracy", "val_robust_accuracy")
    return [dict(zip(names, (epoch, *row), strict=True)) for epoch, row in enumerate(accuracies, 1)]


def test_catastrophic_overfitting_is_a_fall_under_pgd_alone():
    nfgsm = make_config("moons", {"method": "nfgsm"})
    fallen = history((0.6, 0.30), (0.7, 0.40), (0.72, 0.35), (0.8, 0.05), (0.85, 0.3))
    assert overfitting(nfgsm, fallen) == Overfitting(4, 0.4, 0.05)
    assert overfitting(nfgsm, fallen[:3]) is None
    (said,) = overfitting_doubts(nfgsm, fallen)
    assert "after epoch 4: validation accuracy under PGD fell from 0.4000 to 0.0500" in said
    # A network that has forgotten everything is another matter, and so is training on PGD.
    assert overfitting(nfgsm, history((0.7, 0.4), (0.2, 0.1))) is None
    assert overfitting(make_config("moons", {"method": "adv"}), fallen) is None
    assert overfitting(make_config("moons", {"method": "adv", "attack.steps": 1}), fallen) is not None
    assert overfitting(nfgsm, history((None, None), (0.5, None))) is None


def test_training_on_single_steps_is_watched_and_a_run_says_so(tmp_path):
    config, run = workers.start_run(
        tmp_path, "moons", method="nfgsm", data__subset=60, epochs=2, dtype="float64", eval__val_samples=20
    )
    assert watched_noise(config) == config.eps_max
    assert watched_noise(make_config("moons", {"method": "nfgsm", "eval.val_noise": 0.1})) == 0.1
    assert watched_noise(make_config("moons", {"method": "fat"})) is None
    workers.train(config, tmp_path)
    rows = run.read_history()
    assert [0 <= row["val_robust_accuracy"] <= row["val_accuracy"] for row in rows] == [True, True]
    assert not any("overfitting" in text for text in doubts(Run(RunDir(tmp_path))))
    rows[0] |= {"val_robust_accuracy": 0.5, "val_accuracy": 0.5}
    rows[1] |= {"val_robust_accuracy": 0.0, "val_accuracy": 0.9}
    run.write_history(rows)
    assert any("Catastrophic overfitting after epoch 2" in text for text in doubts(Run(RunDir(tmp_path))))

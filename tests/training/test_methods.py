"""Each training method: its loss and gradient against another way of computing them, and whole trainings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ima_dist.attacks import anpgd, ddn
from ima_dist.attacks.common import margin_loss, soft_margin_loss
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import METHODS as NAMES
from ima_dist.core import distributed, norms
from ima_dist.core.noise import Phase
from ima_dist.data.load import load
from ima_dist.methods import METHODS, Batch, make_method
from ima_dist.methods.base import Method
from ima_dist.rundir.directory import RunDir
from ima_dist.training.loop import Training
from ima_dist.training.numerics import NumericalError
from tests.support import workers

NORMS = ("linf", "l2")
WEIGHT = np.array([[0.6, -1.1], [-0.9, 0.4]])
BIAS = np.array([0.2, -0.1])


def linear():
    """Two classes, two inputs."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(WEIGHT))
        model.bias.copy_(torch.from_numpy(BIAS))
    return model


def method(name, norm="linf", box=None, **options) -> Method:
    options = {option.replace("__", "."): value for option, value in options.items()}
    return make_method(make_config("moons", {"method": name, "norm": norm, "dtype": "float64", **options}), box)


def batch(x, y, margins=None):
    return Batch(x, y, torch.arange(len(x)) * 7, margins, seed=3, epoch=2, phase=Phase.TRAIN)


def points(n, spread=1.5):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64) * spread
    return x, torch.arange(n) % 2


def step(chosen, model, given):
    """What the loop does: loss over the batch's size and its gradient."""
    attacked = chosen.attack(model, given)
    assert all(p.requires_grad for p in model.parameters())
    rows = chosen.loss(model(attacked.inputs), given, attacked)
    assert rows.shape == (len(attacked.inputs),)
    model.zero_grad()
    (rows.sum() / len(given.y)).backward()
    return attacked, rows.detach()


def signed_distance(x, y, norm):
    """To the boundary of ``linear()``, positive on the right side; and the shortest way out, of length one."""
    away = (WEIGHT[1] - WEIGHT[0]) * np.where(y.numpy()[:, None] == 0, 1, -1)
    dual = np.abs(away).sum(1) if norm == "linf" else np.linalg.norm(away, axis=1)
    lead = -(x.numpy() @ (WEIGHT[1] - WEIGHT[0]) + BIAS[1] - BIAS[0]) * np.where(y.numpy() == 0, 1, -1)
    unit = np.sign(away) if norm == "linf" else away / dual[:, None]
    return lead / dual, unit


def expected(x, y, weights):
    """Weighted cross-entropies of ``linear()`` at x (N, 2), and the gradient of their sum by the weight."""
    logits = x @ WEIGHT.T + BIAS
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = -np.log(p[np.arange(len(y)), y])
    return weights * rows, ((p - np.eye(2)[y]) * weights[:, None]).T @ x


def check(attacked_rows, model, x, y, weights, size):
    rows, gradient = expected(x, y, weights)
    assert attacked_rows.numpy() == pytest.approx(rows, abs=1e-9)
    assert model.weight.grad.numpy() == pytest.approx(gradient / size, abs=1e-9)


def test_every_name_has_a_method():
    assert set(NAMES) == set(METHODS)


@pytest.mark.parametrize("norm", NORMS)
def test_adv_trains_on_the_farthest_point_of_the_ball(norm):
    x, y = points(9)
    model, eps = linear(), 0.25
    # So many sweeps of the ball that the random start is forgotten under L2 too.
    chosen = method("adv", norm, eps_max=eps, attack__step_scale=400.0, attack__steps=400)
    attacked, rows = step(chosen, model, batch(x, y))
    noisy = x.numpy() + eps * signed_distance(x, y, norm)[1]
    assert attacked.inputs[9:].numpy() == pytest.approx(noisy, abs=1e-9)
    assert attacked.evaluations == 400 * 9
    check(rows, model, np.concatenate([x.numpy(), noisy]), np.tile(y.numpy(), 2), np.full(18, 0.5), 9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["adv", "rand", "trades"])
def test_noise_stays_in_ball_and_box_and_is_keyed_by_sample(name, norm):
    x = torch.rand(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(40) % 2
    chosen = method(name, norm, (0.0, 1.0), eps_max=0.3)
    given = batch(x, y)
    noisy = chosen.attack(linear(), given).inputs[40:]
    assert float(noisy.min()) == 0
    assert float(noisy.max()) == 1
    assert float(norms.length(noisy - x, norm).max()) <= 0.3 + 1e-12
    assert float(norms.length(noisy - x, norm).max()) > 0.27
    some = torch.tensor([31, 4])
    part = Batch(x[some], y[some], given.indices[some], None, given.seed, given.epoch, given.phase)
    # Not bit for bit: a product of matrices may be summed in another order for another batch.
    torch.testing.assert_close(chosen.attack(linear(), part).inputs[2:], noisy[some], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm", "mean"), [("linf", 2 / 3), ("l2", 2 / 3)])
def test_rand_is_uniform_in_the_ball(norm, mean):
    # In the plane the largest of two coordinates and the L2 length both average 2/3 of the radius.
    x, y = points(20000)
    attacked = method("rand", norm, eps_max=0.4).attack(linear(), batch(x, y))
    delta = attacked.inputs[20000:] - x
    assert float(norms.length(delta, norm).mean()) == pytest.approx(0.4 * mean, rel=0.01)
    assert delta.mean(0).numpy() == pytest.approx([0, 0], abs=0.005)
    assert attacked.evaluations == 0


def test_rand_weighs_clean_and_noisy_alike():
    x, y = points(6)
    model = linear()
    attacked, rows = step(method("rand"), model, batch(x, y))
    check(rows, model, attacked.inputs.numpy(), np.tile(y.numpy(), 2), np.full(12, 0.5), 6)


@pytest.mark.parametrize("norm", NORMS)
def test_trades_attack_moves_the_prediction_as_far_as_it_can(norm):
    x, y = points(30)
    model = linear()
    chosen = method("trades", norm, eps_max=0.2, attack__step_scale=400.0, attack__steps=400)
    attacked = chosen.attack(model, batch(x, y))
    assert torch.equal(attacked.correct, model(x).argmax(1) == y)
    before, _ = signed_distance(x, y, norm)
    after, _ = signed_distance(attacked.inputs[30:], y, norm)
    assert np.abs(after - before) == pytest.approx(np.full(30, 0.2), abs=1e-9)


@pytest.mark.parametrize("inverse_lambda", [1.0, 6.0])
def test_trades_gradient_is_that_of_two_forward_passes(inverse_lambda):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = points(12)
    options = {} if inverse_lambda == 6 else {"trades__inverse_lambda": inverse_lambda}
    attacked, rows = step(method("trades", **options), model, batch(x, y))
    got = [p.grad.clone() for p in model.parameters()]
    noisy = attacked.inputs[12:]
    log_q, p = F.log_softmax(model(noisy), 1), F.softmax(model(x), 1)
    loss = F.cross_entropy(model(x), y) + inverse_lambda * F.kl_div(log_q, p, reduction="sum") / 12
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    assert float(rows.sum()) / 12 == pytest.approx(loss.item(), abs=1e-12)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert float(rows[12:].min()) > 0


def test_soft_margin_loss():
    logits = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]], dtype=torch.float64)
    wanted = [math.log(math.e**2 + math.e**4) - 1, math.log(math.e + math.e**2) - 4]
    assert soft_margin_loss(logits, torch.tensor([0, 2])).tolist() == pytest.approx(wanted)
    y = torch.tensor([0, 1])
    assert torch.allclose(soft_margin_loss(logits[:, :2], y), margin_loss(logits[:, :2], y))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("guess", [0.01, 0.3, 2.0])
def test_anpgd_finds_the_distance_of_a_linear_network(norm, guess):
    x, y = points(60)
    distance, unit = signed_distance(x, y, norm)
    rows = torch.from_numpy((distance > 0.15) & (distance < 1.9)).nonzero()[:, 0]
    assert len(rows) > 15
    given = {"norm": norm, "max_eps": 2.0, "start": torch.zeros(len(rows), 2).double()}
    found = anpgd(linear(), x[rows], y[rows], guess, **given)
    assert found.distance.numpy() == pytest.approx(distance[rows], rel=0.01)
    assert found.crossed.all()
    point = x[rows].numpy() + found.distance.numpy()[:, None] * unit[rows]
    assert found.x.numpy() == pytest.approx(point, abs=1e-9)
    assert found.evaluations == 31 * len(rows)


def test_anpgd_says_what_it_did_not_reach_and_stays_in_the_box():
    x, y = torch.tensor([[0.2, 0.1], [0.2, 0.9]]).double(), torch.tensor([0, 0])
    distance, _ = signed_distance(x, y, "linf")
    assert distance[1] < 0 < distance[0]
    found = anpgd(linear(), x[:1], y[:1], 0.01, norm="linf", max_eps=float(distance[0]) * 0.9)
    assert not found.crossed.any()
    assert found.distance.item() == pytest.approx(distance[0] * 0.9, rel=1e-3)
    found = anpgd(linear(), x[:1], y[:1], 0.9, norm="linf", max_eps=0.9, box=(0.0, 0.15))
    assert found.x.max() <= 0.15
    assert found.x.min() >= 0


@pytest.mark.parametrize("norm", NORMS)
def test_mma_hinge_and_weights(norm):
    x, y = points(40)
    distance, _ = signed_distance(x, y, norm)
    d_max = float(np.median(distance[distance > 0]))
    margins = torch.full((40,), d_max / 30, dtype=torch.float64)
    model = linear()
    attacked, rows = step(method("mma", norm, eps_max=d_max), model, batch(x, y, margins))
    assert torch.equal(attacked.correct, torch.from_numpy(distance > 0))
    margin = attacked.proposals.values.numpy()
    assert (margin[distance < 0] == 0).all()
    right = (distance > 0.05 * d_max) & (distance < d_max)
    # Under L2 PGD has not quite forgotten its random start after 2.5 sweeps.
    assert margin[right] == pytest.approx(distance[right], rel=0.01 if norm == "linf" else 0.05)
    assert (margin[right] > distance[right] * (1 - 0.01)).all()
    far = distance > 1.1 * d_max
    assert margin[far] == pytest.approx(np.full(far.sum(), 1.05 * d_max), rel=2e-3)
    assert not attacked.proposals.crossed[torch.from_numpy(far)].any()
    near = np.flatnonzero((distance > 0) & (margin < d_max))
    assert attacked.noisy_of.tolist() == near.tolist()
    assert 5 < len(near) < (distance > 0).sum()
    noisy = attacked.inputs[40:]
    assert np.abs(signed_distance(noisy, y[near], norm)[0]).max() < d_max / 500
    weights = np.concatenate([np.where(distance > 0, 1 / 3, 1.0), np.full(len(near), 2 / 3)])
    check(rows, model, attacked.inputs.numpy(), np.concatenate([y.numpy(), y.numpy()[near]]), weights, 40)


def test_mma_with_only_wrong_samples():
    x, y = points(40)
    wrong = torch.from_numpy(signed_distance(x, y, "linf")[0] < 0)
    x, y = x[wrong], y[wrong]
    attacked, rows = step(method("mma"), linear(), batch(x, y, torch.full_like(x[:, 0], 0.01)))
    assert torch.equal(attacked.inputs, x)
    assert torch.allclose(rows, F.cross_entropy(linear()(x), y, reduction="none"))
    assert attacked.evaluations == len(x)


def test_ddn_on_a_linear_network():
    x, y = points(60)
    distance, unit = signed_distance(x, y, "l2")
    found = ddn(linear(), x, y)
    length = norms.length(found.x - x, "l2").numpy()
    reach = (distance > 0.4) & (distance < 2.2)
    assert reach.sum() > 10
    assert found.found[torch.from_numpy(reach)].all()
    assert (length[reach] >= distance[reach]).all()
    assert (length[reach] <= 1.25 * distance[reach]).all()
    assert (length[distance < 0] == 0).all()
    assert torch.equal(found.correct, torch.from_numpy(distance > 0))
    # The direction never changes, so the norms are a game of one number.
    for i in np.flatnonzero(distance > 0):
        norm, at, best = 1.0, 0.0, 0.0
        for _ in range(20):
            if at > distance[i]:
                best, norm = min(best or at, at), norm * 0.95
            else:
                norm *= 1.05
            at = norm
        assert found.x[i].numpy() == pytest.approx(x[i].numpy() + best * unit[i], abs=1e-9)
        assert bool(found.found[i]) == (best > 0)


def test_ddn_keeps_to_the_largest_norm_and_the_box():
    x, y = points(60, spread=0.5)
    x = (x + 0.5).clamp(0, 1)
    free = ddn(linear(), x, y, box=(0.0, 1.0))
    bound = ddn(linear(), x, y, box=(0.0, 1.0), max_norm=0.2)
    assert 0 <= float(free.x.min()) <= float(free.x.max()) <= 1
    long = norms.length(free.x - x, "l2")
    assert float(long.max()) > 0.3
    assert torch.allclose(norms.length(bound.x - x, "l2"), long.clamp(max=0.2))
    assert (margin_loss(linear()(free.x), y) > 0)[free.found].all()


def test_ddn_without_a_gradient_stays_where_it_is():
    model = nn.Linear(2, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x, y = points(4)
    found = ddn(model, x, torch.zeros_like(y))
    assert torch.equal(found.x, x)
    assert not found.found.any()


def test_ddn_trains_on_perturbed_samples_alone():
    x, y = points(20)
    model = linear()
    attacked, rows = step(method("ddn", "l2", eps_max=0.7), model, batch(x, y))
    assert torch.equal(attacked.inputs, ddn(linear(), x, y, max_norm=0.7).x)
    check(rows, model, attacked.inputs.numpy(), y.numpy(), np.ones(20), 20)


def test_ddn_needs_l2():
    with pytest.raises(ConfigError, match="add --norm l2"):
        make_config("moons", {"method": "ddn"})


# 129 samples in batches of 32: in the last step one of two workers has none.
SMALL = {"data__subset": 129, "epochs": 2, "batch_size": 32, "dtype": "float64", "optimizer__lr": 1e-2}


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *[("adv", "linf"), ("rand", "l2"), ("trades", "linf"), ("mma", "linf"), ("mma", "l2"), ("ddn", "l2")],
        *[("iaat", "linf"), ("fat", "l2"), ("nfgsm", "linf")],
    ],
)
def test_one_and_two_workers_end_with_equal_weights(tmp_path, name, norm):
    results = []
    for count in (1, 2):
        path = tmp_path / str(count)
        # Weights of classes are those of the global batch.
        weights = {"class_weights": '{"0": 1.25, "1": 1}'} if name == "trades" else {}
        config, run = workers.start_run(path, "moons", method=name, norm=norm, **SMALL, **weights)
        workers.run_on(count, workers.train, config, path)
        results.append((*workers.final_state(config, path), run.read_history()))
    (weights_1, margins_1, history_1), (weights_2, margins_2, history_2) = results
    assert workers.largest_difference(weights_1, weights_2) < 1e-9
    for a, b in zip(history_1, history_2, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-9)
        assert (a["evaluations"], a["noisy_samples"]) == (b["evaluations"], b["noisy_samples"])
    # Half are right by chance; they have learnt something.
    assert history_1[-1]["train_accuracy"] > 0.6
    if name in ("mma", "iaat"):
        assert float((margins_1 - margins_2).abs().max()) < 1e-9
        assert float(margins_1.max()) > 0.1
    else:
        assert margins_1 is None


def _train_each(configs, paths):
    for config, path in zip(configs, paths, strict=True):
        workers.train(config, path)


def test_two_workers_with_batch_norm(tmp_path):
    # With 129 samples worker 1 has none in the last step; a lone sample would be too few for batch norm.
    sizes = {"ima": 129, "adv": 129, "trades": 129, "mma": 128}
    options = {**SMALL, "epochs": 1, "model__factory": "tests.support.user_code:with_batch_norm"}
    configs = []
    for name, size in sizes.items():
        config, _ = workers.start_run(tmp_path / name, "moons", method=name, **{**options, "data__subset": size})
        configs.append(config)
    workers.run_on(2, _train_each, configs, [tmp_path / name for name in sizes])
    for config, (name, size) in zip(configs, sizes.items(), strict=True):
        weights, _ = workers.final_state(config, tmp_path / name)
        assert all(w.isfinite().all() for w in weights.values())
        # One pass in training mode for each step: worker 0 is never without samples. The attack's leave no trace.
        assert int(weights["1.num_batches_tracked"]) == 4 + (size % 32 > 0)
        if name != "ima":  # its first margins are too small for a noisy sample
            assert RunDir(tmp_path / name).read_history()[0]["noisy_samples"] > 0


def _compare_running_statistics(config, path):
    training = Training(config, RunDir(path), load(config.data, config.seed), torch.device("cpu"))
    norm = next(m for m in training.network.modules() if isinstance(m, torch.nn.BatchNorm1d))
    mean, variance, step, seen = norm.running_mean, norm.running_var, training._step, []

    def stepping(*given):
        before = mean.clone()
        step(*given)
        assert not torch.equal(mean, before)
        seen.append(distributed.gather_objects(torch.stack([mean, variance])))

    training._step = stepping
    training.fit()
    assert len(seen) == 8
    for first, second in seen:
        assert torch.equal(first, second)


def test_workers_attack_networks_with_the_same_running_statistics(tmp_path):
    options = {**SMALL, "data__subset": 128, "model__factory": "tests.support.user_code:with_batch_norm"}
    config, _ = workers.start_run(tmp_path, "moons", method="adv", **options)
    workers.run_on(2, _compare_running_statistics, config, tmp_path)


def _averages():
    tensors = [torch.full((2, 3), float(distributed.rank())), torch.tensor(10.0 * distributed.rank())]
    distributed.average_(tensors)
    assert torch.equal(tensors[0], torch.full((2, 3), 0.5))
    assert tensors[1] == 5.0
    tensors = [torch.tensor(3.0 + 3.0 * distributed.rank(), dtype=torch.float64)]
    distributed.average_(tensors, weight=2 - distributed.rank())
    assert tensors[0] == 4.0
    share = distributed.share_of_batch(torch.arange(5, 5 + 3))
    assert share.tolist() == [[5, 6], [7]][distributed.rank()]


def _last_step_without_samples(config, path):
    _averages()
    training = Training(config, RunDir(path), load(config.data, config.seed), torch.device("cpu"))
    training.begin()
    layer = next(m for m in training.network.modules() if isinstance(m, nn.BatchNorm1d))
    mean, variance = layer.running_mean, layer.running_var
    # What the step of a single sample makes of the statistics where there are no other workers.
    alone = nn.BatchNorm1d(len(mean), dtype=mean.dtype)
    for statistic in (mean, variance, alone.running_mean, alone.running_var):
        statistic.fill_(7.0)
    seen = []
    layer.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0].detach()) if module.training else None)
    training._step(torch.tensor([5]))
    if distributed.rank() == 0:
        (rows,) = seen
        alone(rows)
        assert torch.allclose(mean, alone.running_mean)
        assert torch.allclose(variance, alone.running_var)
    else:
        assert not seen
    assert not (mean == 7.0).any()


def test_running_statistics_are_averaged_and_a_worker_without_samples_leaves_them_to_the_others(tmp_path):
    options = {**SMALL, "data__subset": 128, "model__factory": "tests.support.user_code:with_batch_norm"}
    config, _ = workers.start_run(tmp_path, "moons", method="adv", **options)
    workers.run_on(2, _last_step_without_samples, config, tmp_path)


def test_batch_norm_can_be_synchronised_on_gpus_alone(tmp_path):
    config, run = workers.start_run(
        tmp_path,
        "moons",
        **SMALL,
        model__factory="tests.support.user_code:with_batch_norm",
        model__sync_batch_norm=True,
    )
    training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
    assert [type(m).__name__ for m in training.network][1] == "SyncBatchNorm"
    plain, _ = workers.start_run(
        tmp_path / "plain", "moons", **SMALL, model__factory="tests.support.user_code:with_batch_norm"
    )
    unsynchronised = Training(plain, RunDir(tmp_path / "plain"), load(config.data, 0), torch.device("cpu"))
    assert list(training.network.state_dict()) == list(unsynchronised.network.state_dict())


def test_nan_names_the_samples_when_only_noisy_ones_are_trained_on(tmp_path):
    factory = {"model__factory": "tests.support.user_code:turns_nan", "epochs": 3}
    config, run = workers.start_run(tmp_path / "run", "moons", method="ddn", norm="l2", **{**SMALL, **factory})
    training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
    with pytest.raises(NumericalError, match=r"epoch 3, step 1 \(worker 0: samples \d+"):
        training.fit()

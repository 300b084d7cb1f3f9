from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, make_moons
from torch import nn

from ima_dist.attacks import bpgd, pgd, shapes, worst
from ima_dist.attacks.common import attack_mode, cross_entropy, logits_and_gradient, resolve_loss
from ima_dist.core import norms
from ima_dist.models import moons_mlp
from tests.support import reference
from tests.support.hostile import Times

NORMS = ("linf", "l2")
SIDES = ("midpoint", "inside", "outside")
CLOSE = {"rtol": 0, "atol": 1e-7}


class Counting(nn.Module):
    """Counts the samples that pass through."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.samples = inner, 0

    def forward(self, x):
        self.samples += len(x)
        return self.inner(x)


def fit(model, x, y, steps):
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for rows in torch.arange(len(x)).repeat(steps).split(128)[:steps]:
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.InstanceNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


@functools.cache
def problem(name):
    """(network in training mode, x, y, box, radii at which some samples cross), float64."""
    torch.manual_seed(0)
    kind, _, weights = name.partition("-")
    if kind == "moons":
        points, labels = make_moons(1024, noise=0.06, random_state=0)
        x, y, model, box = torch.tensor(points), torch.tensor(labels), moons_mlp().double(), None
        few, radii = 96, {"linf": 0.25, "l2": 0.3}
    else:
        pixels, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
        model, box = small_cnn().double(), (0.0, 1.0)
        few, radii = 24, {"linf": 0.1, "l2": 0.8}
    if weights == "trained":
        model = fit(model, x, y, 60)
    return model, x[:few], y[:few], box, radii


PROBLEMS = ("moons-random", "moons-trained", "digits-random", "digits-trained")


def starts(x, eps, norm, seed=0):
    torch.manual_seed(seed)
    return norms.random_start(x, eps, norm)


def radius_of(kind, eps, x):
    torch.manual_seed(1)
    return eps if kind == "scalar" else 2 * eps * torch.rand(len(x), dtype=x.dtype)


@pytest.mark.parametrize("kind", ["scalar", "per sample"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equal_to_the_plain_algorithms(name, norm, kind):
    model, x, y, box, radii = problem(name)
    eps = radius_of(kind, radii[norm], x)
    # 20 steps where passes are cheap; the algorithm is the same for fewer.
    steps = 20 if name.startswith("moons") else 6
    options = {"norm": norm, "steps": steps, "start": starts(x, eps, norm), "box": box}
    for side in SIDES if steps == 20 else ("midpoint",):
        found = bpgd(model, x, y, eps, boundary_side=side, **options)
        point, crossed = reference.bpgd(model, x, y, eps, boundary_side=side, **options)
        assert torch.equal(found.crossed, crossed)
        torch.testing.assert_close(found.x, point, **CLOSE)
    if name.endswith("trained"):
        assert 0 < crossed.sum() < found.correct.sum(), "the radius makes this test say little"
    torch.testing.assert_close(pgd(model, x, y, eps, **options), reference.pgd(model, x, y, eps, **options), **CLOSE)
    model.eval()
    assert torch.equal(found.correct, model(x).argmax(1) == y)
    model.train()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("loss", ["margin", lambda logits, y: -logits.softmax(1).gather(1, y[:, None])[:, 0]])
@pytest.mark.parametrize("box", [None, (0.0, 1.0), (-0.2, 0.6)])
def test_losses_boxes_and_sides(side, loss, box):
    model, x, y, _, _ = problem("moons-trained")
    x = x if box is None else x.clamp(*box)
    for norm in NORMS:
        options = {"norm": norm, "start": starts(x, 0.3, norm), "box": box, "loss": loss, "step_scale": 2.5}
        found = bpgd(model, x, y, 0.3, boundary_side=side, bisections=6, **options)
        point, crossed = reference.bpgd(model, x, y, 0.3, boundary_side=side, bisections=6, **options)
        assert torch.equal(found.crossed, crossed)
        assert crossed.any()
        torch.testing.assert_close(found.x, point, **CLOSE)
        torch.testing.assert_close(
            pgd(model, x, y, 0.3, **options), reference.pgd(model, x, y, 0.3, **options), **CLOSE
        )


@pytest.mark.parametrize("norm", NORMS)
def test_float32_differs_in_few_samples_at_most(norm):
    model, x, y, _, radii = problem("moons-trained")
    model, x = moons_mlp(), x.float()
    model.load_state_dict(problem("moons-trained")[0].state_dict())
    options = {"norm": norm, "start": starts(x, radii[norm], norm)}
    found = bpgd(model, x, y, radii[norm], **options)
    point, crossed = reference.bpgd(model, x, y, radii[norm], **options)
    differs = ((found.x - point).abs().amax(1) > 1e-4) | (found.crossed != crossed)
    assert differs.double().mean() <= 0.03


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["moons-trained", "digits-trained"])
def test_results_lie_in_the_ball_and_in_the_box(name, norm):
    model, x, y, box, radii = problem(name)
    eps = radius_of("per sample", radii[norm], x)
    torch.manual_seed(2)
    options = {"norm": norm, "box": box, "steps": 20 if name.startswith("moons") else 4}
    for out in (pgd(model, x, y, eps, **options), bpgd(model, x, y, eps, **options).x):
        assert (norms.length(out - x, norm) <= eps + 1e-12).all()
        assert box is None or (out.min() >= box[0] and out.max() <= box[1])
        assert not out.requires_grad


def test_the_boundary_point_is_on_the_boundary():
    model, x, y, _, _ = problem("moons-trained")
    model.eval()
    options = {"norm": "linf", "start": starts(x, 0.4, "linf")}
    inside = bpgd(model, x, y, 0.4, boundary_side="inside", **options)
    outside = bpgd(model, x, y, 0.4, boundary_side="outside", **options)
    hit = inside.crossed
    assert hit.any()
    assert (model(inside.x).argmax(1) == y)[hit].all()
    assert (model(outside.x).argmax(1) != y)[hit].all()
    # Two elements lie at most a step or, at first, the radius apart; ten halvings divide that by 1024.
    assert (inside.x - outside.x)[hit].abs().max() <= 0.4 / 1024 + 1e-12
    model.train()


def test_wrong_clean_samples_are_left_alone():
    model, x, y, _, _ = problem("moons-trained")
    model.eval()
    y = torch.where(torch.arange(len(y)) % 2 == 0, model(x).argmax(1), 1 - model(x).argmax(1))
    model.train()
    found = bpgd(model, x, y, 0.5, norm="linf")
    assert found.correct.tolist() == [i % 2 == 0 for i in range(len(y))]
    assert not found.crossed[1::2].any()
    assert found.crossed[::2].any()
    assert torch.equal(found.x[1::2], x[1::2])


class Line(nn.Module):
    """Two classes, the second where w·x + b > 0."""

    def __init__(self, w, b=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))
        self.b = b

    def forward(self, x):
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], 1)


def test_a_crossing_by_the_start_itself_is_bracketed_by_x_and_the_start():
    x = torch.tensor([[-0.1, 0.0]], dtype=torch.float64)
    start = torch.tensor([[0.3, 0.2]], dtype=torch.float64)
    options = {"norm": "linf", "start": start}
    found = {s: bpgd(Line([1.0, 0.0]), x, torch.tensor([0]), 0.3, boundary_side=s, **options) for s in SIDES}
    assert found["inside"].crossed.all()
    # The segment from x to x + start meets the boundary a third of the way along.
    crossing = x + start / 3
    for side in SIDES:
        assert (found[side].x - crossing).abs().max() <= 0.3 / 1024
    assert found["midpoint"].evaluations == 1 + 1 + 10
    no_halving = bpgd(Line([1.0, 0.0]), x, torch.tensor([0]), 0.3, bisections=0, **options)
    torch.testing.assert_close(no_halving.x, x + start / 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [7, 20])
def test_linear_network_crosses_exactly_where_the_radius_reaches_the_boundary(norm, steps):
    torch.manual_seed(0)
    model = Line([0.7, -1.5, 0.4], 0.3)
    x = torch.randn(200, 3, dtype=torch.float64)
    score = x @ model.w.detach() + 0.3
    y = (score > 0).long()
    distance = score.abs() / model.w.detach().norm(p=1 if norm == "linf" else 2)
    # In L2 the iterates turn towards the normal only by and by.
    eps = distance * (1.001 if norm == "linf" else 1.05)
    beyond = bpgd(model, x, y, eps, norm=norm, steps=steps)
    assert beyond.crossed.all()
    short = bpgd(model, x, y, distance * 0.999, norm=norm, steps=steps)
    assert not short.crossed.any()
    assert torch.equal(short.x, x)
    # The boundary is met within the ball and no nearer than the distance, up to the last bracket.
    found = norms.length(beyond.x - x, norm)
    assert (found <= eps + 1e-12).all()
    assert (found >= distance - 4 * eps / steps / 1024 - eps / 1024).all()
    adv = pgd(model, x, y, eps, norm=norm, steps=steps)
    assert (model(adv).argmax(1) != y).all()
    # α = 4 sweeps the ball: on a plane the last iterate lies at its far side.
    torch.testing.assert_close(norms.length(adv - x, norm), eps, rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_nobody_and_everybody_crosses(norm):
    model, x, y, _, _ = problem("moons-trained")
    nobody = bpgd(model, x, y, 1e-6, norm=norm)
    assert not nobody.crossed.any()
    assert torch.equal(nobody.x, x)
    assert nobody.evaluations == len(x) + 21 * int(nobody.correct.sum())
    line = Line([1.0, 0.5])
    y = line(x).argmax(1)
    options = {"norm": norm, "start": starts(x, 6.0, norm)}
    everybody = bpgd(line, x, y, 6.0, **options)
    assert everybody.crossed.all()
    torch.testing.assert_close(everybody.x, reference.bpgd(line, x, y, 6.0, **options)[0], **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["moons-trained", "digits-trained"])
def test_empty_and_single_batches(name, norm):
    model, x, y, box, radii = problem(name)
    options = {"norm": norm, "steps": 3, "box": box}
    empty = bpgd(model, x[:0], y[:0], radii[norm], **options)
    assert empty.x.shape == x[:0].shape
    assert empty.crossed.shape == empty.correct.shape == (0,)
    assert empty.evaluations == 0
    assert pgd(model, x[:0], y[:0], radii[norm], **options).shape == x[:0].shape
    assert worst(model, x[:0], y[:0], [0.1], norm=norm, steps=3)[0].shape == (1, 0)
    start = starts(x, radii[norm], norm)
    for b in range(4):
        one = slice(b, b + 1)
        found = bpgd(model, x[one], y[one], radii[norm], start=start[one], **options)
        point, crossed = reference.bpgd(model, x[one], y[one], radii[norm], start=start[one], **options)
        assert torch.equal(found.crossed, crossed)
        torch.testing.assert_close(found.x, point, **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_stays_put(norm):
    class Flat(nn.Module):
        def forward(self, x):
            return 0 * x.sum(1, keepdim=True) + torch.tensor([1.0, 0.0], dtype=x.dtype)

    x = torch.randn(5, 3, dtype=torch.float64)
    start = starts(x, 0.5, norm)
    y = torch.zeros(5, dtype=torch.long)
    assert torch.equal(pgd(Flat(), x, y, 0.5, norm=norm, start=start), norms.clip(x + start, x, 0.5, norm, None))
    assert not bpgd(Flat(), x, y, 0.5, norm=norm, start=start).crossed.any()


def test_zero_radius_is_no_crossing():
    model, x, y, _, _ = problem("moons-trained")
    found = bpgd(model, x, y, torch.zeros(len(x), dtype=x.dtype), norm="l2")
    assert not found.crossed.any()
    assert torch.equal(found.x, x)


@pytest.mark.parametrize("norm", NORMS)
def test_evaluations_are_the_samples_that_passed_through(norm, monkeypatch):
    # A batch that keeps its shape passes others through beside them.
    monkeypatch.setattr(shapes, "keeps_shape", lambda model, x: False)
    model, x, y, _, radii = problem("moons-trained")
    for eps in (1e-6, radii[norm], 3.0):
        counting = Counting(model)
        found = bpgd(counting, x, y, eps, norm=norm)
        assert found.evaluations == counting.samples
        counting = Counting(model)
        assert int(worst(counting, x, y, [0.0, eps], norm=norm, steps=10)[1]) == counting.samples


def modes_and_flags(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


class Fails(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.left, self.inner = after, nn.Linear(2, 2)

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of order")
        return self.inner(x)


def test_modes_and_gradient_flags_are_restored():
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))
    model.train()
    model[2][0].eval()
    model[0].weight.requires_grad_(False)
    before, buffers = modes_and_flags(model), [b.clone() for b in model.buffers()]
    x, y = torch.randn(16, 2), torch.randint(2, (16,))
    with attack_mode(model):
        assert not any(modes_and_flags(model)[0] + modes_and_flags(model)[1])
    for attack in (pgd, bpgd):
        attack(model, x, y, 0.5, norm="linf")
        assert modes_and_flags(model) == before
    worst(model, x, y, [0.5], norm="linf", steps=3)
    assert modes_and_flags(model) == before
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


@pytest.mark.parametrize("after", [0, 1, 5])
def test_modes_and_gradient_flags_are_restored_after_an_exception(after):
    x, y = torch.randn(8, 2), torch.zeros(8, dtype=torch.long)
    attacks = [
        lambda m: pgd(m, x, y, 0.5, norm="linf"),
        lambda m: bpgd(m, x, m[0].inner(x).argmax(1), 1e-6, norm="linf"),
        lambda m: worst(m, x, m[0].inner(x).argmax(1), [1e-6], norm="linf", steps=10),
    ]
    for attack in attacks:
        model = nn.Sequential(Fails(after), nn.Identity())
        model[1].eval()
        before = modes_and_flags(model)
        with pytest.raises(RuntimeError, match="out of order"):
            attack(model)
        assert modes_and_flags(model) == before
        assert torch.is_grad_enabled()


def test_parameter_gradients_are_not_touched():
    model, x, y, _, _ = problem("moons-trained")
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    pgd(model, x, y, 0.3, norm="linf")
    bpgd(model, x, y, 0.3, norm="l2")
    worst(model, x, y, [0.1, 0.3], norm="linf", steps=5)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    model.zero_grad()
    bpgd(model, x, y, 0.3, norm="linf")
    assert all(p.grad is None for p in model.parameters())


def test_a_plain_function_can_be_attacked():
    model, x, y, _, _ = problem("moons-trained")
    model.eval()
    start = starts(x, 0.3, "linf")
    by_function = bpgd(lambda z: model(z), x, y, 0.3, norm="linf", start=start)
    model.train()
    by_module = bpgd(model, x, y, 0.3, norm="linf", start=start)
    # The batch of a function shrinks; this module's keeps its shape.
    torch.testing.assert_close(by_function.x, by_module.x, rtol=0, atol=1e-12)
    assert by_function.evaluations == by_module.evaluations


@pytest.mark.parametrize("norm", NORMS)
def test_samples_do_not_depend_on_their_batch(norm):
    model, x, y, _, radii = problem("moons-trained")
    eps = radius_of("per sample", radii[norm], x)
    start = starts(x, eps, norm)
    whole = bpgd(model, x, y, eps, norm=norm, start=start)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    for rows in order.split(29):
        part = bpgd(model, x[rows], y[rows], eps[rows], norm=norm, start=start[rows])
        assert torch.equal(part.crossed, whole.crossed[rows])
        torch.testing.assert_close(part.x, whole.x[rows], **CLOSE)


@pytest.mark.parametrize("attack", [pgd, bpgd])
def test_what_does_not_fit_is_refused(attack):
    model, x, y, _, _ = problem("moons-trained")
    with pytest.raises(ValueError, match="norm must be 'linf' or 'l2', not 'l1'"):
        attack(model, x, y, 0.1, norm="l1")
    with pytest.raises(ValueError, match="y must have shape"):
        attack(model, x, y[:-1], 0.1, norm="l2")
    with pytest.raises(ValueError, match="eps must be a number"):
        attack(model, x, y, torch.ones(3), norm="l2")
    with pytest.raises(ValueError, match="start must have shape"):
        attack(model, x, y, 0.1, norm="l2", start=x[:1])
    with pytest.raises(ValueError, match="loss must be 'ce', 'margin'"):
        attack(model, x, y, 0.1, norm="l2", loss="hinge")
    with pytest.raises(ValueError, match="boundary_side must be"):
        bpgd(model, x, y, 0.1, norm="l2", boundary_side="middle")
    with pytest.raises(ValueError, match="levels must ascend"):
        worst(model, x, y, [0.2, 0.1], norm="l2")


def test_margin_loss_is_positive_exactly_where_misclassified():
    logits = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 5
    loss = resolve_loss("margin")(logits, y)
    assert torch.equal(loss > 0, logits.argmax(1) != y)
    torch.testing.assert_close(loss, reference.objective("margin", logits, y))


def test_the_direction_of_cross_entropy_is_that_of_its_gradient():
    logits = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(50) % 7
    _, ours = logits_and_gradient(lambda z: z, logits, y, cross_entropy)
    (exact,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    other = 1 - logits.softmax(1).gather(1, y[:, None])
    torch.testing.assert_close(ours * other, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("factor", [1e2, 1e4])
def test_confidence_does_not_blind_an_attack(norm, factor):
    """Larger logits of two classes have the same boundary and the same directions, also in float32."""
    model, x, y, box, radii = problem("moons-trained")
    plain = copy.deepcopy(model).float().eval()
    sure = nn.Sequential(copy.deepcopy(plain), Times(factor)).eval()
    start = starts(x, radii[norm], norm).float()
    found = [pgd(m, x.float(), y, radii[norm], norm=norm, start=start, box=box) for m in (plain, sure)]
    broken = [plain(adv).argmax(1) != y for adv in found]
    assert int(broken[0].sum()) > 10
    assert torch.equal(*broken)
    # Where the gradient of cross-entropy, as it stands, has lost the true class's part.
    probability = sure(x.float()).softmax(1).gather(1, y[:, None])[:, 0]
    assert bool(((probability == 1) & broken[0]).any())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["moons-trained", "digits-trained"])
def test_worst_equals_brute_force_and_is_at_least_as_strong_as_pgd(name, norm):
    model, x, y, box, radii = problem(name)
    levels = [0.0, radii[norm] / 2, radii[norm]]
    steps = 20 if name.startswith("moons") else 3
    draws = {eps: starts(x, eps, norm) for eps in levels if eps > 0}
    model.eval()
    same = {"norm": norm, "steps": steps, "start": draws.__getitem__, "box": box}
    predictions, _ = worst(model, x, y, levels, rivals=0, **same)
    stricter, _ = worst(model, x, y, levels, **same)
    assert not ((stricter == y) & (predictions != y)).any()
    with torch.enable_grad():
        expected = reference.worst(model, x, y, levels, norm=norm, starts=draws.__getitem__, steps=steps, box=box)
    held = predictions == y
    assert torch.equal(held, expected)
    assert not (held[1:] & ~held[:-1]).any(), "a broken sample came back at a larger radius"
    for number, eps in enumerate(levels[1:], 1):
        survivors = torch.ones_like(y, dtype=torch.bool)
        for loss in ("ce", "margin"):
            adv = pgd(model, x, y, eps, norm=norm, steps=steps, loss=loss, start=draws[eps], box=box)
            survivors &= model(adv).argmax(1) == y
        assert not (held[number] & ~survivors).any()
    model.train()


class Decoy(nn.Module):
    """Three classes in the plane: class 1 begins at x₀ = 0.3; class 2 is always a little stronger, but never wins."""

    def forward(self, x):
        first = x[:, 0]
        near = torch.where(first > 0.25, 20 * (first - 0.3), -1.0 + 0 * first)
        decoy = -0.05 - 0.3 * torch.relu(first) + 0.01 * x[:, 1]
        return torch.stack([0 * first, near + 0.001 * first, decoy], 1)


def test_worst_passes_no_empty_batch_on_when_every_sample_is_wrong_from_the_start():
    class Picky(nn.Linear):
        def forward(self, x):
            assert len(x)
            return super().forward(x)

    network = Picky(4, 5)
    x = torch.rand(6, 4)
    predicted = network(x).argmax(1)
    found, evaluations = worst(network, x, (predicted + 1) % 5, [0.0, 0.1], norm="linf", steps=2)
    assert torch.equal(found, predicted.expand(2, 6))
    assert evaluations == 6


def test_worst_aims_at_a_rival_that_the_strongest_one_hides():
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    options = {"norm": "linf", "steps": 50, "start": lambda eps: torch.zeros_like(x)}
    hidden, _ = worst(Decoy(), x, y, [0.4], rivals=0, losses=("margin",), **options)
    assert (hidden == 0).all()
    found, _ = worst(Decoy(), x, y, [0.4], losses=("margin",), **options)
    assert (found == 1).all()
    found, _ = worst(Decoy(), x, y, [0.2], losses=("margin",), **options)
    assert (found == 0).all()  # too small a radius


@pytest.mark.parametrize("norm", NORMS)
def test_worst_reports_a_wrong_label_that_was_seen(norm):
    model, x, y, box, radii = problem("digits-trained")
    predictions, _ = worst(model, x, y, [0.0, radii[norm]], norm=norm, steps=4, box=box)
    model.eval()
    assert torch.equal(predictions[0], model(x).argmax(1))
    model.train()
    broken = predictions[0] != y
    assert torch.equal(predictions[1][broken], predictions[0][broken])
    assert predictions.min() >= 0
    assert predictions.max() < 10

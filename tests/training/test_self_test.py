"""The self-test of an evaluation: planted adversarial samples, who finds them, and where that is said."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ima_dist import evaluate, train
from ima_dist.config.attacks import ATTACK_TABLE
from ima_dist.config.presets import make_config
from ima_dist.core import distributed, norms
from ima_dist.core.distributed import Interrupted
from ima_dist.data.types import Resident
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.evaluation.binarized import features_of, planted
from ima_dist.evaluation.self_test import self_test
from ima_dist.results.doubts import doubts
from ima_dist.results.self_tests import joined, self_test_lines
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.rundir.run import Run
from tests.support import workers
from tests.support.inline import without_ray
from tests.support.reports import report_on
from tests.support.small_images import four_classes
from tests.support.summaries import make_run


class Rounded(nn.Module):
    """A network whose inputs are rounded, so that it has no gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 20).round() / 20)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 4))
    return nn.Sequential(*layers).double()


def settings(**options):
    given = {"data.source": "tests.support.small_images:four_classes", "dtype": "float64", "eval.noise": [0.0, 0.1]}
    return make_config("mnist", {**given, "eval.steps": 20, **options})


def images() -> Resident:
    data = four_classes(None, 0)
    return Resident(data.test, "cpu", torch.float64, data.box)


def looked_for(net: nn.Module, attacks: list[str], count: int = 4, config=None, **how):
    how = {"samples": torch.arange(count), "epoch": 1, "at_once": 300, **how}
    return self_test(net, images(), config or settings(), attacks, **how)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0)])
def test_a_planted_sample_lies_at_the_noise_level_and_is_the_only_one_known(norm, eps):
    net, x = network().eval(), images().batch(torch.tensor([3]))[0]
    seen = []
    with torch.no_grad(), features_of(net, x) as features:

        def watched(given):
            seen.append(given)
            return features(given)

        how = {"norm": norm, "box": (0.0, 1.0), "seed": 0}
        binarized, _ = planted(net, watched, x, 3, eps, at_once=300, **how)
        points = torch.cat(seen[:5])  # those that the readout was fitted to
        labels = binarized(points).argmax(1)
        # The readout works on the input of the last layer.
        torch.testing.assert_close(features(x), net[:-1](x))
        again, _ = planted(net, features, x, 3, eps, at_once=1000, **how)
        torch.testing.assert_close(again.weight, binarized.weight, rtol=1e-6, atol=1e-9)
        other, _ = planted(net, features, x, 4, eps, at_once=1000, **how)
        assert not torch.allclose(other.weight, binarized.weight)
    assert len(points) == 1001
    distance = norms.length(points - x, norm)
    assert labels.tolist() == [0] * 1000 + [1]
    assert float(distance[-1]) == pytest.approx(eps)
    assert distance[-1] <= eps
    assert float(distance[:-1].max()) <= 0.95 * eps + 1e-9
    assert torch.equal(points[-2:-1], x)
    assert 0 <= float(points.min()) <= float(points.max()) <= 1
    assert not net[-1]._forward_pre_hooks


def test_no_sample_is_planted_where_there_is_no_room_or_no_difference():
    x = torch.full((1, 1, 10, 10), 0.5, dtype=torch.float64)
    how = {"norm": "linf", "seed": 0, "at_once": 2000}
    with torch.no_grad():
        assert planted(network(), network(), x, 0, 0.1, box=(0.45, 0.55), **how) is None
        constant = lambda given: given.new_ones(len(given), 3)  # noqa: E731
        assert planted(network(), constant, x, 0, 0.1, box=None, **how) is None


def test_attacks_find_what_was_planted_unless_the_gradient_is_hidden():
    worst, noise = looked_for(network(), ["worst", "white-noise"])
    assert (worst["planted"], worst["found"]) == (4, 4)
    assert noise["found"] < 4
    assert (worst["noise"], worst["steps"], worst["samples"]) == (0.1, 20, 4)
    (hidden,) = looked_for(Rounded(network()), ["pgd100"])
    assert (hidden["planted"], hidden["found"]) == (4, 0)


def _on_this_worker(path):
    found = looked_for(network(), ["pgd100", "white-noise"], count=3, config=settings(**{"eval.steps": 5}))
    if distributed.rank() == 0:
        path.write_text(json.dumps(found))


def test_two_workers_find_the_same(tmp_path):
    for count in (1, 2):
        workers.run_on(count, _on_this_worker, tmp_path / f"{count}.json")
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()


def test_an_attack_that_fails_is_named_and_a_stop_is_obeyed(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(EVALUATION_ATTACKS, "spsa", broken)
    noise, spsa = looked_for(network(), ["white-noise", "spsa"], count=1)
    assert "found" in noise
    assert "found" not in spsa
    assert spsa["failed"] == "RuntimeError: no such thing"
    with pytest.raises(Interrupted):
        looked_for(network(), ["white-noise"], count=1, should_stop=lambda: True)


def test_what_is_said_of_a_self_test(tmp_path):
    run = make_run(tmp_path / "run", "mnist", {0.1: 0.5}, {"attack": "worst"})
    usual = {
        "attack": "worst",
        "epoch": 60,
        "noise": 0.1,
        "version": ATTACK_TABLE["worst"].version,
        "steps": 100,
        "samples": 50,
    }

    def said(**entry):
        before = run.summary().get("self_tests")
        write_json(run.summary_path, {**run.summary(), "self_tests": joined(before, [{**usual, **entry}])})
        shown = Run(RunDir(run.path))
        return self_test_lines(shown, 60), [text for text in doubts(shown) if "planted" in text]

    lines, found = said(planted=50, by_chance=1, found=50)
    assert lines == [
        "Self-test of worst at noise 0.1: it finds 50 of 50 planted adversarial samples (95 % interval 93 % to 100 %), "
        "uniform random noise 1."
    ]
    assert found == []
    _, found = said(planted=50, by_chance=1, found=40)
    assert len(found) == 1
    assert "worst missed 10 of 50 adversarial samples that were planted at noise 0.1: it is too weak" in found[0]
    assert "random noise finds 30 of 50" in said(planted=50, by_chance=30, found=50)[1][0]
    assert "planted for only 3 of 50" in said(planted=3, by_chance=0, found=3)[1][0]
    assert "no adversarial sample could be planted" in said(planted=0, by_chance=0, found=0)[0][0]
    lines, _ = said(planted=5, by_chance=0, found=5, steps=10)
    assert len(lines) == 2  # by protocol
    for damaged in ("no list", [3, {"epoch": 60}], [{**usual, "planted": "x", "by_chance": 0, "found": 1}]):
        write_json(run.summary_path, {**run.summary(), "self_tests": damaged})
        assert self_test_lines(Run(RunDir(run.path)), 60) == []


def test_evaluate_tests_its_attacks_and_the_report_has_the_rate(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    monkeypatch.setattr("ima_dist.worker.tasks.MOST_TESTED", 2)
    out = tmp_path / "run"
    options = "--data.subset 40 --epochs 1 --method ce --eval.steps 3 --eval.noise 0,0.3 --device cpu"
    assert train.main(["moons", *options.split(), "--eval.attacks", "white-noise", "--out", str(out)]) == 0
    assert "Self-test" not in capsys.readouterr().out
    assert evaluate.main([str(out), "--attack", "pgd100", "--self-test", "--device", "cpu"]) == 0
    assert "Self-test of pgd100 at noise 0.3: " in capsys.readouterr().out
    (entry,) = RunDir(out).summary()["self_tests"]
    assert (entry["attack"], entry["samples"], entry["steps"]) == ("pgd100", 2, 3)
    assert {point.attack for point in RunDir(out).points()} == {"white-noise", "pgd100"}
    page = report_on(tmp_path / "report", out)
    assert any("Self-test of pgd100" in text for text in page.texts["p"])
    for useless in (["--attack", "white-noise"], ["--eval.noise", "0"]):
        assert evaluate.main([str(out), *useless, "--self-test", "--device", "cpu"]) == 2
        assert "--self-test needs a noise level above 0 and an attack that searches" in capsys.readouterr().err

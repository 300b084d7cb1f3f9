"""``ima_dist.measure``: the numbers of an evaluation in this process, for any network."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import ima_dist
from ima_dist import evaluate
from ima_dist.config.errors import ConfigError
from ima_dist.evaluation import autoattack as autoattack_module
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.rundir.run import Run
from tests.support import small_images
from tests.support.evaluating import short_autoattack
from tests.support.exports import small_run

ATTACKS = ("pgd100", "worst", "white-noise", "autoattack")
LEVELS = [0, "1/20", 0.1]
DATA = small_images.two_classes(None, 3)
X, Y = DATA.test.x, DATA.test.y


@pytest.fixture(scope="module", autouse=True)
def _few_iterations():
    """What AutoAttack itself achieves: test_evaluation_attacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoattack_module, "AutoAttack", short_autoattack)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in float64 with another seed than 0, attacked with ``ATTACKS``."""
    torch.set_num_threads(1)
    place = small_run(tmp_path_factory.mktemp("measure") / "run", "--dtype", "float64", "--seed", "3")
    words = ["--attack", ",".join(ATTACKS), "--eval.noise", "0,1/20,0.1", "--local", "--device", "cpu"]
    assert evaluate.main([str(place), *words]) == 0
    return Run.open(place)


def outcomes(table) -> list[tuple]:
    columns = ["attack", "loss", "noise", "index", "label", "prediction"]
    return sorted(table[columns].itertuples(index=False, name=None))


def test_the_numbers_are_those_of_an_evaluation(run):
    theirs = pq.read_table(run.dir.outcomes_path).to_pandas()
    theirs = theirs[theirs["epoch"] == 2]
    points = {(p.attack, p.loss, p.level): p for p in run.points if p.epoch == 2}
    classifier = ima_dist.load(run.dir.path)
    for network in (run, classifier, classifier.network):
        attacks = ATTACKS if network is run else ATTACKS[:3]
        more = {} if network is not classifier.network else {"seed": 3}
        found = ima_dist.measure(network, X, Y, noise=LEVELS, attacks=attacks, steps=2, progress=False, **more)
        assert outcomes(found.outcomes) == outcomes(theirs[theirs["attack"].isin(attacks)]) != []
        assert found.points
        for point in found.points:
            same = points[point.attack, point.loss, point.level]
            assert (point.accuracy, point.protocol, point.met) == (same.accuracy, same.protocol, same.met)
            assert point.turned_wrong == same.turned_wrong
        assert found.samples == len(X)
    floats = ima_dist.measure(run, X.numpy() / 255, Y.tolist(), noise=LEVELS, attacks=ATTACKS[:1], steps=2)
    assert outcomes(floats.outcomes) == outcomes(theirs[theirs["attack"] == "pgd100"])


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(100), nn.Linear(100, 2))


def test_the_network_is_left_as_it_was():
    network = linear()
    network[2].bias.requires_grad_(False)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    threads, drawn = torch.get_num_threads(), torch.random.get_rng_state()
    exact = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    ima_dist.measure(network, X[:6], Y[:6], noise=[0.1], attacks=["worst", "autoattack"], steps=2)
    assert all(m.training for m in network.modules())
    assert [p.requires_grad for p in network.parameters()] == [True, True, True, False]
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == exact


class Ends(nn.Module):
    """The linear network with something after it."""

    def __init__(self, end) -> None:
        super().__init__()
        self.inner, self.end = linear(), end

    def forward(self, x):
        return self.end(self.inner(x))


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda z: z.softmax(1), "returns probabilities"),
        (lambda z: z.round() + 0 * z, "gradient of zero"),
        (lambda z: z.detach() + z - z.detach() ** 2, "gradient is not that of its answers"),
    ],
)
def test_doubts_are_those_of_a_run(end, said):
    found = ima_dist.measure(Ends(end), X, Y, noise=[0.1], attacks=["worst"], steps=2)
    assert any(said in text for text in found.doubts), found.doubts
    assert not any("untrained" in text for text in found.doubts)
    assert found.doubts[0] in repr(found)
    assert "Doubtful" in found._repr_html_()


def test_what_a_run_refuses_is_refused():
    for end, name in ((lambda z: z + torch.rand_like(z), "random"), (lambda z: z - z.mean(0), "coupled")):
        network = Ends(end)
        with pytest.raises(ConfigError, match=f"--allow {name}"):
            ima_dist.measure(network, X, Y, noise=[0.1], steps=1)
        allowed = ima_dist.measure(network, X, Y, noise=[0.1], steps=1, attacks=["white-noise"], allow=[name])
        assert any(f"--allow {name}" in text for text in allowed.doubts)


def test_an_attack_that_fails_leaves_the_others(monkeypatch):
    def fails(*_: object):
        raise RuntimeError("no luck")

    monkeypatch.setitem(EVALUATION_ATTACKS, "worst", fails)
    found = ima_dist.measure(linear(), X, Y, noise=[0.1], attacks=["worst", "white-noise"])
    assert any("worst failed (RuntimeError: no luck)" in text for text in found.doubts)
    assert {point.attack for point in found.points} == {"white-noise"}
    with pytest.raises(ConfigError, match="no luck"):
        ima_dist.measure(linear(), X, Y, noise=[0.1], attacks=["worst"])


def test_what_it_shows(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # in which a bar is shown though stderr is no terminal
    found = ima_dist.measure(linear(), X, Y, noise=(0, 0.1), attacks=["worst", "white-noise"], steps=2)
    shown = capsys.readouterr()
    assert "white-noise" in shown.err + shown.out
    monkeypatch.delitem(sys.modules, "ipykernel")
    ima_dist.measure(linear(), X, Y, noise=(0, 0.1), attacks=["worst"], steps=2)
    assert capsys.readouterr().err == ""
    assert "Accuracy by noise level (L∞)" in repr(found)
    assert "test set" not in repr(found)
    page = found._repr_html_()
    assert page.count("<tr>") == 3
    assert f"{found.accuracy('worst', 0.1):.4f}" in page
    table = found.to_pandas()
    assert table[["attack", "noise"]].values.tolist() == [
        ["worst", 0.0], ["worst", 0.1], ["white-noise", 0.0], ["white-noise", 0.1],
    ]  # fmt: skip
    assert ((table["low95"] <= table["accuracy"]) & (table["accuracy"] < table["high95"])).all()
    assert table["steps"].isna().tolist() == [False, False, True, True]
    assert [t.name for t in found.plot().data if t.showlegend is not False] == ["worst", "white-noise"]
    with pytest.raises(ConfigError, match=r"worst at noise 0.2 was not measured, but worst at 0, worst at 0.1"):
        found.accuracy("worst", 0.2)
    assert found.accuracy("worst", "1/10") == found.accuracy("worst", 0.1)
    with pytest.raises(ConfigError, match="worst at noise much was not measured"):
        found.accuracy("worst", "much")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X / 255}, "Give box"),
        ({"x": X.double(), "box": (0, 1)}, r"outside its box \(0, 1\)"),
        ({"x": X[:, :, :9]}, r"does not take samples of shape \(1, 9, 10\)"),
        ({"x": np.full((16, 1, 10, 10), np.nan), "box": None}, "NaN or infinite value, first in sample 0"),
        ({"y": Y + 1}, "has the label 2, outside 0 to 1"),
        ({"y": Y[:3]}, "16 samples x but 3 labels"),
        ({"x": X[:0], "y": Y[:0]}, "no samples"),
        ({"noise": []}, "needs at least one level"),
        ({"noise": [0]}, "a level above 0"),
        ({"noise": [0.2, 0.1]}, "ascending"),
        ({"attacks": ["pdg100"]}, "must be one of"),
        ({"norm": "l1"}, "must be one of linf, l2"),
        ({"network_or_run": "nowhere"}, "does not exist"),
        ({"network_or_run": 3}, "Give a torch.nn.Module"),
        ({"network_or_run": linear().half()}, r"is in float16, .*\.float\(\)"),
        ({"network_or_run": nn.Flatten(0)}, r"returns shape \(200,\) for 2 samples"),
    ],
)
def test_one_sentence(changes, message):
    given = {"network_or_run": linear(), "x": X, "y": Y, "noise": [0.1], **changes}
    with pytest.raises(ConfigError, match=message) as caught:
        ima_dist.measure(**given)
    assert "\n" not in str(caught.value)


def test_samples_for_a_classifier_are_checked(run):
    with pytest.raises(ConfigError, match=r"takes samples of shape \(1, 10, 10\)"):
        ima_dist.measure(run, X[:, 0], Y, noise=[0.1])
    with pytest.raises(ConfigError, match="outside its box"):
        ima_dist.measure(run, X.double(), Y, noise=[0.1])

"""Weights of classes: where they come from, what they do to the loss of each method, and subsets of uneven classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from ima_dist.config.errors import ConfigError, DataWarning
from ima_dist.config.presets import make_config, train_command
from ima_dist.config.schema import METHODS
from ima_dist.config.values import from_dict, to_dict
from ima_dist.data.choosing import quotas_in_proportion
from ima_dist.data.load import load
from ima_dist.data.published import Published
from ima_dist.data.types import DataSet, Split
from ima_dist.rundir.directory import RunDir
from ima_dist.training.class_weights import class_weights
from ima_dist.training.loop import Training

Y = np.repeat([0, 1, 2], [60, 30, 10])


def uneven(y: np.ndarray = Y, names: tuple[str, ...] | None = None) -> DataSet:
    x = torch.from_numpy(np.random.default_rng(0).random((len(y), 2)))
    split = Split(x, torch.from_numpy(y))
    return DataSet(split, split.view(torch.arange(0)), split, None, 3, names)


def weights_of(text: str, names: tuple[str, ...] | None = None) -> list[float]:
    found = class_weights(make_config("moons", {"class_weights": text}), uneven(names=names))
    assert found is not None
    return found.tolist()


def test_balanced_is_as_in_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=Y)
    assert weights_of("balanced") == pytest.approx(expected.tolist())
    assert class_weights(make_config("moons"), uneven()) is None


def test_a_file_is_read_once_and_saved_as_its_weights(tmp_path):
    file = tmp_path / "weights.csv"
    file.write_text("class,weight\nrare,10\ncommon,1\nmiddle, 2.5\n", encoding="utf-8")
    config = make_config("moons", {"class_weights": str(file)})
    file.unlink()
    assert config.class_weights == '{"common": 1.0, "middle": 2.5, "rare": 10.0}'
    assert from_dict(to_dict(config)) == config
    assert '\'{"common": 1.0' in train_command(config, "out")
    found = weights_of(config.class_weights, ("common", "middle", "rare"))
    mean = (60 * 1 + 30 * 2.5 + 10 * 10) / 100
    assert found == pytest.approx([1 / mean, 2.5 / mean, 10 / mean])
    assert np.average(np.array(found)[Y]) == pytest.approx(1)
    assert weights_of('{"2": 10, "0": 1, "1": 2.5}', ("common", "middle", "rare")) == pytest.approx(found)


def test_a_class_by_name_and_by_number_is_refused():
    with pytest.raises(ConfigError, match="names the class common twice, also by its number 0"):
        weights_of('{"0": 1, "common": 2, "middle": 1, "rare": 3}', ("common", "middle", "rare"))


def test_they_are_in_the_fingerprint_only_if_used():
    plain, balanced = make_config("moons"), make_config("moons", {"class_weights": "balanced"})
    assert plain.fingerprint() != balanced.fingerprint()
    assert make_config("moons", {"class_weights": None}).fingerprint() == plain.fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing.csv", "missing.csv cannot be read"),
        ('{"0": -1}', "gives the class '0' no positive number"),
        ('{"0": "much"}', "gives the class '0' no positive number"),
        ("{0: 1}", "is not valid JSON"),
        ("{}", "has no weights"),
    ],
)
def test_weights_that_are_none(text, message):
    with pytest.raises(ConfigError, match=message):
        make_config("moons", {"class_weights": text})


def test_files_of_weights_that_are_none(tmp_path):
    file = tmp_path / "weights.csv"
    for content, message in (
        ("a,1\na,2\n", "names a class twice"),
        ("a,1,2\n", "write a class and its weight"),
        ("class,weight\n", "has no weights"),
        ("a,1\nb,x\n", "gives the class 'b' no positive number"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            make_config("moons", {"class_weights": str(file)})
    with pytest.raises(ConfigError, match="no weight for the class middle"):
        weights_of('{"common": 1}', ("common", "middle", "rare"))
    with pytest.raises(ConfigError, match="the class 3, which the data lack"):
        weights_of('{"0": 1, "1": 1, "2": 1, "3": 1}')


@pytest.mark.parametrize("method", METHODS)
def test_every_part_of_every_loss_is_weighted(tmp_path, method):
    """Each row of a batch, clean or noisy, by the class of its sample."""
    options = {
        "method": method,
        "norm": "linf" if method == "nfgsm" else "l2",
        "dtype": "float64",
        "data.subset": 64,
        "attack.steps": 3,
    }
    options |= {"eps_max": 0.3, "eval.noise": (0.0,), "optimizer.lr": 0.02, "epochs": 1}
    losses, samples = [], torch.zeros(0)
    for name, given in (("plain", {}), ("weighted", {"class_weights": '{"0": 3, "1": 1}'})):
        config = make_config("moons", {**options, **given})
        run = RunDir.create(config, tmp_path / name)
        data = load(config.data, config.seed)
        training = Training(config, run, data, torch.device("cpu"))
        training._propose = lambda batch, attacked: None  # type: ignore[method-assign]
        training.class_weights, kept = None, training.class_weights
        for _ in range(30):  # some samples must be right, to have noisy ones
            training._step(torch.arange(64))
        training.class_weights = kept
        if training.state.store is not None:
            training.state.store.shard.fill_(0.3)
        loss, rows, samples = training._loss(next(training.train.batches([torch.arange(64)])))
        assert float(loss.detach()) == pytest.approx(float(rows.detach().sum()))
        losses.append(rows.detach())
    assert len(samples) == len(losses[0])
    if method not in ("ce", "ddn", "iaat", "fat", "nfgsm"):  # those train on one row for each sample
        assert len(samples) > 64
    weights = class_weights(config, data)
    assert weights is not None
    torch.testing.assert_close(losses[1], losses[0] * weights[data.train.y[samples]])


def test_quotas_in_proportion():
    assert quotas_in_proportion([60, 30, 10], 10) == [6, 3, 1]
    assert quotas_in_proportion([1000, 5, 1], 3) == [1, 1, 1]
    assert quotas_in_proportion([1000, 0, 1], 4) == [3, 0, 1]
    assert quotas_in_proportion([5, 3, 2], 10) == [5, 3, 2]


def test_a_subset_of_uneven_classes(monkeypatch):
    monkeypatch.setattr("ima_dist.data.moons.load", lambda config, seed: uneven(np.repeat([0, 1, 2], [600, 300, 100])))
    with pytest.warns(DataWarning, match="equal shares would need 133 training samples of class 2, which has 100"):
        data = load(make_config("moons", {"data.subset": 400}).data, 0)
    assert torch.bincount(data.train.y).tolist() == [240, 120, 40]
    assert torch.bincount(data.test.y).tolist() == [240, 120, 40]
    smaller = load(make_config("moons", {"data.subset": 300}).data, 0)  # equal shares, as ever
    assert torch.bincount(smaller.train.y).tolist() == [100, 100, 100]


def test_a_validation_set_that_is_cut_is_said(monkeypatch):
    parts = {"train": uneven().train, "test": uneven().train}
    monkeypatch.setattr(Published, "load", lambda self, config: parts)
    published = Published("name", "Title", ("a", "b", "c"), (), "", (), (), "", lambda paths: parts)
    with pytest.warns(DataWarning, match="asks for 60 validation images: 40 are held out"):
        data = published.data_set(make_config("moons").data, 0, lambda images: 60)
    assert (len(data.train), len(data.val)) == (60, 40)

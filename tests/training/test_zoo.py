"""Networks as people write them: the same on 1 and 2 workers, and after an interruption; or refused at the door."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ima_dist.attacks.common import attack_mode
from ima_dist.config.errors import ConfigError, DataWarning
from ima_dist.config.presets import make_config
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.training import tensors
from ima_dist.training.door import check_door
from ima_dist.training.habits import StepGenerators, moving_buffers
from ima_dist.training.loop import Training
from ima_dist.training.network import make_network
from tests.support import workers, zoo

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
# The last batch has one sample: one of two workers has none.
SAMPLES = {"data__subset": 10, "batch_size": 9}
# Batch norm needs more than one.
MORE = {"data__subset": 13, "batch_size": 9}
SHORT = {"epochs": 2, "dtype": "float64", "attack__steps": 2, "attack__bisections": 2, "optimizer__lr": 2e-2}


def options_of(name, **further):
    size = MORE if name == "BatchNorm" else SAMPLES
    factory = {"model__factory": "tests.support.zoo:build", "model__args": {"name": name}}
    return {**SHORT, **size, **factory, "margin_update": "online", **further}


def checked(name, factory="build", **options):
    given = {name.replace("__", "."): value for name, value in options_of(name, **options).items()}
    config = make_config("moons", {**given, "data.subset": 60, "model.factory": f"tests.support.zoo:{factory}"})
    data = load(config.data, 0)
    network = make_network(config, data)
    return network, check_door(network, data, config)


def _train_all(place: Path, names: list[str]) -> None:
    """Each network twice: at once, and interrupted in the first epoch."""
    for name in names:
        for stops in ((None,), (1, None)):
            path = place / f"{name}-{len(stops)}"
            config = RunDir(path).config()
            for stop_after in stops:
                # Other draws before must not matter.
                torch.rand(3), np.random.rand(), random.random()
                workers.train(config, path, stop_after)
                if stop_after is not None:
                    assert [p.name for p in (path / "checkpoints").iterdir()] == ["epoch=0000-step=000001"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(workers, name, starts) -> weights and margins."""
    found = {}
    for count in (1, 2):
        place, configs = tmp_path_factory.mktemp("zoo"), {}
        for name in zoo.NETWORKS:
            for starts in (1, 2):
                configs[name, starts], _ = workers.start_run(place / f"{name}-{starts}", "moons", **options_of(name))
        workers.run_on(count, _train_all, place, list(zoo.NETWORKS))
        for (name, starts), config in configs.items():
            found[count, name, starts] = workers.final_state(config, place / f"{name}-{starts}")
    return found


def difference(a, b):
    """The largest of weights and margins."""
    assert a[0].keys() == b[0].keys()
    of_weights = [(a[0][name].double() - b[0][name].double()).abs().max() for name in a[0] if a[0][name].numel()]
    return float(torch.stack([*of_weights, (a[1] - b[1]).abs().max()]).max())


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_a_network_resumes_exactly_and_agrees_on_one_and_two_workers(results, name):
    for count in (1, 2):
        assert difference(results[count, name, 1], results[count, name, 2]) < 1e-9
    apart = difference(results[1, name, 1], results[2, name, 1])
    assert apart > 1e-6 if name in zoo.SPLIT else apart < 1e-9


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_it_passes_the_door_and_comes_back_from_a_file(tmp_path, name):
    network, found = checked(name, workers=2)
    assert found["allowed"] == []
    tensors.save(network, tmp_path / "file")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.zero_()
    tensors.load(network, tmp_path / "file")
    assert network.state_dict().keys() == before.keys()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key])
        assert not tensor.is_floating_point() or tensor.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "sentence", "on_one"),
    [
        ("Overlapping", r"share a part of their memory, 'part' and 'all'.*register only one", True),
        ("HiddenState", r"different answers in training mode.*buffers that are saved", True),
        ("UnsavedState", r"different answers in training mode.*buffers that are saved", True),
        ("OwnGenerator", r"different answers in training mode.*Python's own generator", True),
        ("Graph", r"cannot be trained.*Detach what forward\(\) keeps", True),
        ("Imaginary", r"complex parameters.*view_as_complex", True),
        ("Counted", r"its buffer 'seen' \(whole numbers\).*2 workers would have different ones", False),
        ("Spread", r"its buffer 'spread'.*how 2 workers split a batch: use --workers 1.*--allow coupled", False),
    ],
)
def test_what_cannot_be_resumed_or_shared_is_refused(name, sentence, on_one):
    assert name in zoo.REFUSED
    with pytest.raises(ConfigError, match=sentence):
        checked(name, "build_refused", workers=1 if on_one else 2)
    if not on_one:
        assert checked(name, "build_refused", workers=1)[1]["allowed"] == []


def test_every_layer_keeps_its_own_mode():
    for name in ("FrozenBatchNorm", "BatchNormFrozenByTrain"):
        network, _ = checked(name)
        assert (network.training, network.first.training, network.norm.training) == (True, True, False)
        with attack_mode(network):
            assert not any(m.training for m in network.modules())
        assert (network.training, network.first.training, network.norm.training) == (True, True, False)
    with pytest.warns(DataWarning, match=r"All layers of .* are in evaluation mode.*return network.train\(\)"):
        network, _ = checked("Dropout", "build_in_evaluation_mode")
    assert not any(m.training for m in network.modules())


@pytest.mark.parametrize("name", ["FrozenBatchNorm", "BatchNormFrozenByTrain"])
def test_frozen_statistics_are_those_of_the_factory(results, name):
    config = make_config("moons", {"model.factory": "tests.support.zoo:build", "model.args": {"name": name}})
    first = make_network(config, load(config.data, 0)).state_dict()
    for count in (1, 2):
        kept = results[count, name, 1][0]
        assert float((kept["norm.running_mean"] - first["norm.running_mean"]).abs().max()) < 1e-7  # drawn in float32
        assert int(kept["norm.num_batches_tracked"]) == 0


def test_what_a_network_draws_depends_on_seed_epoch_step_and_nothing_else():
    def drawn(seed, *step):
        StepGenerators(seed, torch.device("cpu")).start(*step)
        return float(torch.rand(())), float(np.random.rand()), random.random()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1)]
    kinds = zip(*(drawn(*place) for place in places), strict=True)
    assert all(len(set(numbers)) == len(places) for numbers in kinds)
    assert drawn(0, 3, 4) == drawn(0, 3, 4)


def test_what_training_changes_is_found_and_left_as_it_was(tmp_path):
    x, y = torch.randn(8, 2), torch.arange(8) % 2
    for name, moving in (
        ("OwnStatistics", {"mean", "steps"}),
        ("BatchNorm", {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}),
        ("FrozenBatchNorm", set()),
    ):
        network = zoo.NETWORKS[name]()
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        assert set(moving_buffers(network, x, y, 0)) == moving
        assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())


def test_a_step_that_loss_scaling_skips_is_counted(tmp_path, monkeypatch):
    config, run = workers.start_run(tmp_path / "run", "moons", data__subset=64, batch_size=16, epochs=2, method="ce")
    training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
    training.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    steps = []

    def overflowing(gradient):
        steps.append(1)
        return gradient * float("inf") if len(steps) in (2, 3, 6) else gradient

    next(m for m in training.network.modules() if isinstance(m, nn.Linear)).bias.register_hook(overflowing)
    training.fit()
    assert [row["skipped_steps"] for row in run.read_history()] == [2, 1]
    assert training.state.scaler.get_scale() == 2.0**5

"""IMA in one's own training loop gives the margins and weights of ``ima_dist.train``."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import ima_dist
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.core.distributed import share_of_batch
from ima_dist.data.load import load
from ima_dist.data.order import batches
from ima_dist.methods.own_loop import IncreasingMargin
from ima_dist.training.network import make_network, make_optimizer
from tests.support import commands, workers
from tests.support.commands import ROOT

OPTIONS = {"data__subset": 402, "epochs": 3, "batch_size": 64, "dtype": "float64", "optimizer__lr": 1e-2}
FORMS = [("linf", "online"), ("l2", "epoch")]


def _margins_of(config: Config) -> IncreasingMargin:
    samples = len(load(config.data, config.seed).train.y)
    return IncreasingMargin(
        samples, config.eps_max, epochs=config.epochs, beta=config.beta, norm=config.norm, seed=config.seed,
        margin_update=config.margin_update, steps=config.attack.steps, dtype=torch.float64,
    )  # fmt: skip


def train(config: Config, path: str | None = None, state: dict | None = None, stop: int = 10**6) -> dict:
    """A loop as users write it; under DDP if there is a process group. Stops before step ``stop``, if that comes."""
    data = load(config.data, config.seed)
    x, y = data.train.stored.double(), data.train.y
    network = make_network(config, data)
    bare = network
    optimizer = make_optimizer(config, network)
    im = _margins_of(config)
    done = 0
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        im.load_state_dict(state["im"])
        done = state["step"]
    if dist.is_initialized():
        network = DistributedDataParallel(network)
    while im.epoch < config.epochs:
        for batch in batches(len(y), config.batch_size, config.seed, im.epoch, done):
            if im.epoch == 1 and done == stop:
                parts = {"network": bare, "optimizer": optimizer, "im": im}
                return {"step": done, **{name: part.state_dict() for name, part in parts.items()}}
            own = share_of_batch(batch)
            noisy = im.attack(network, x[own], y[own], own)
            loss = im.loss(network(noisy.inputs), y[own], noisy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
        done = 0
        if config.margin_update == "epoch":
            for own in share_of_batch(torch.arange(len(y))).split(100):
                im.estimate(network, x[own], y[own], own)
        im.update()
    result = {"weights": bare.state_dict(), "margins": im.margins}
    if path is not None and im.epoch == config.epochs and (not dist.is_initialized() or dist.get_rank() == 0):
        torch.save(result, path)
    return result


@pytest.mark.parametrize(("norm", "update"), FORMS)
def test_equal_to_a_run(tmp_path, norm, update):
    config, _ = workers.start_run(tmp_path / "run", "moons", norm=norm, margin_update=update, **OPTIONS)
    workers.train(config, tmp_path / "run")
    weights, margins = workers.final_state(config, tmp_path / "run")

    ours = train(config)
    assert workers.largest_difference(weights, ours["weights"]) < 1e-9
    assert float((margins - ours["margins"]).abs().max()) < 1e-9

    continued = train(config, state=train(config, stop=2))
    assert workers.largest_difference(weights, continued["weights"]) < 1e-9
    assert float((margins - continued["margins"]).abs().max()) < 1e-9


def test_equal_under_ddp(tmp_path):
    """402 − 80 samples are in five batches of 64 and one of two, so that the shares of two workers are equal."""
    found = []
    config, _ = workers.start_run(tmp_path / "run", "moons", margin_update="online", **OPTIONS)
    for count in (1, 2):
        workers.run_on(count, train, config, str(tmp_path / f"{count}.pt"))
        found.append(torch.load(tmp_path / f"{count}.pt"))
    assert workers.largest_difference(found[0]["weights"], found[1]["weights"]) < 1e-9
    assert float((found[0]["margins"] - found[1]["margins"]).abs().max()) < 1e-9


def test_the_examples_equal_fit(tmp_path, monkeypatch):
    """130 samples are batches of 64, 64 and 2, which two workers can share equally."""
    x = torch.rand(130, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    y = (x[:, 0] > x[:, 1].sin()).long()
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    monkeypatch.chdir(tmp_path)
    import own_loop

    run = ima_dist.fit(
        "own", data={"train": (x, y), "test": (x[:20], y[:20])}, network=own_loop.build, name="plane",
        epochs=3, batch_size=64, eps_max=0.3, margin_update="online", dtype="float64",
        **{"optimizer.lr": 0.05, "eval.noise": (0.1,), "eval.attacks": ("pgd100",), "eval.steps": 1},
    )  # fmt: skip
    margins = torch.tensor(run.margins[1]["margin"].to_pylist(), dtype=torch.float64)

    torch.manual_seed(0)
    network = own_loop.build(2, (2,)).double()
    plain = own_loop.train(network, x, y)
    weights, stored = workers.final_state(run.config, run.dir.path)
    assert workers.largest_difference(weights, network.state_dict()) < 1e-9
    for found in (margins, stored):
        assert float((found - plain).abs().max()) < 1e-9
    assert len(plain.unique()) > 3

    torch.save((x, y), tmp_path / "data.pt")
    script = [ROOT / "docs" / "examples" / "own_loop_ddp.py", tmp_path / "data.pt", tmp_path / "margins.pt"]
    done = commands.run("torch.distributed.run", "--standalone", "--nproc-per-node", 2, *script)
    assert done.returncode == 0, done.stderr
    assert float((torch.load(tmp_path / "margins.pt") - plain).abs().max()) < 1e-9


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="give epochs, or delta_eps"):
        IncreasingMargin(10, 0.3)
    with pytest.raises(ConfigError, match="delta-eps must be above 0 and at most"):
        IncreasingMargin(10, 0.3, delta_eps=0.5)
    with pytest.raises(ConfigError, match="beta"):
        IncreasingMargin(10, 0.3, epochs=3, beta=2.0)
    im = IncreasingMargin(10, 0.3, epochs=3)
    with pytest.raises(ValueError, match="the state has 10 margins, not 9"):
        IncreasingMargin(9, 0.3, epochs=3).load_state_dict(im.state_dict())
    x, y, network = torch.rand(2, 3), torch.zeros(2).long(), torch.nn.Linear(3, 2)
    with pytest.raises(IndexError, match="index 10 is out of range"):
        im.attack(network, x, y, torch.tensor([1, 10]))
    im.attack(network, x, y, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="sample 2 was proposed twice"):
        im.attack(network, x, y, torch.tensor([2, 3]))

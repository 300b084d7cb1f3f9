"""Every example of docs/interoperability.md runs, and other people's attacks find what ours find."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ima_dist import train
from ima_dist.attacks import pgd
from ima_dist.attacks.worst import worst
from ima_dist.evaluation.autoattack import autoattack
from ima_dist.rundir.directory import RunDir
from tests.support import digits
from tests.support.commands import ROOT
from tests.support.inline import without_ray

EPS = 0.1
PAGE = (ROOT / "docs/interoperability.md").read_text(encoding="utf-8").split("\n## ")


def examples(section: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with ``runs/digits``, five epochs of IMA."""
    root: Path = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        words = [
            "own", "--name", "digits", "--data.source", "tests.support.digits:load", "--model.factory",
            "tests.support.digits:build", "--eps-max", str(EPS), "--eval.noise", f"0,{EPS}", "--epochs", "5",
            "--device", "cpu", "--attack.steps", "10", "--eval.steps", "10", "--out", str(root / "runs" / "digits"),
        ]  # fmt: skip
        assert train.main(words) == 0
    return root


@pytest.fixture(scope="module")
def ours(place):
    """The classifier, the page's samples, and which of them (N,) it keeps under ``worst``."""
    known: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(examples(PAGE[0]), known)
    classifier, x, y = known["classifier"], known["x"], known["y"]
    found, _ = worst(classifier, x, y, [0.0, EPS], norm="linf", box=classifier.box)
    assert 0.3 < float((found[1] == y).float().mean()) < float((found[0] == y).float().mean()) - 0.05
    return known, found[1] == y


def run_section(name: str, ours: tuple[dict[str, Any], Tensor], monkeypatch: pytest.MonkeyPatch, cwd: Path) -> dict:
    """What the names in the section's examples stand for after they have run."""
    (section,) = [part for part in PAGE if part.startswith(name + "\n")]
    monkeypatch.chdir(cwd)
    torch.manual_seed(0)
    known = dict(ours[0])
    exec(examples(section), known)
    return known


def check_attack(noisy: Tensor, ours: tuple[dict[str, Any], Tensor]) -> Tensor:
    """Which samples (N,) keep their labels at the points that a PGD of somebody else has found.

    It found them within ε and in the box, breaks as many as ours with its steps, and next to none that ``worst`` does
    not break.
    """
    known, kept_by_worst = ours
    classifier, x, y = known["classifier"], known["x"], known["y"]
    assert float((noisy - x).abs().max()) <= EPS + 1e-6
    assert float(noisy.min()) >= 0
    assert float(noisy.max()) <= 1
    kept = torch.from_numpy(classifier.predict(noisy).labels) == y
    torch.manual_seed(0)
    same = classifier.predict(pgd(classifier, x, y, EPS, norm="linf", steps=40, box=classifier.box)).labels
    assert float(kept.float().mean()) == pytest.approx(float((torch.from_numpy(same) == y).float().mean()), abs=0.05)
    assert int((kept_by_worst & ~kept).sum()) <= 1
    return kept


def test_foolbox(place, ours, monkeypatch, tmp_path):
    known = run_section("Foolbox", ours, monkeypatch, place)
    assert torch.equal(check_attack(known["noisy"], ours), ~known["broken"])
    test = digits.load(None, 0)["test"]
    x, y = torch.as_tensor(test[0]), torch.as_tensor(test[1])
    clean = known["foolbox"].accuracy(known["network"], x, y)
    assert clean == pytest.approx(RunDir(place / "runs" / "digits").summary()["clean_accuracy"], abs=1e-6)


def test_art(place, ours, monkeypatch):
    known = run_section("ART", ours, monkeypatch, place)
    check_attack(torch.from_numpy(known["noisy"]), ours)
    logits = known["classifier"](known["x"]).detach()
    torch.testing.assert_close(torch.from_numpy(known["estimator"].predict(known["x"].numpy())), logits)


def test_captum(place, ours, monkeypatch):
    """Attributions of a sample add up to how much its logit exceeds that of a black image."""
    known = run_section("Captum", ours, monkeypatch, place)
    classifier, x, y = known["classifier"], known["x"], known["y"]
    with torch.no_grad():
        difference = (classifier(x) - classifier(torch.zeros_like(x))).gather(1, y[:, None])[:, 0]
    assert known["attributions"].shape == x.shape
    found = known["attributions"].sum((1, 2, 3)).float()
    torch.testing.assert_close(found, difference, rtol=0.02, atol=0.02 * float(difference.abs().max()))


def test_robustbench(place, ours, monkeypatch, tmp_path):
    known = run_section("RobustBench", ours, monkeypatch, tmp_path)
    classifier, x, y = known["classifier"], known["x"], known["y"]
    clean = float((torch.from_numpy(classifier.predict(x).labels) == y).float().mean())
    assert known["clean"] == pytest.approx(clean, abs=1e-6)
    found = autoattack(classifier, x, y, EPS, norm="linf", seed=0, box=classifier.box)
    assert known["robust"] == pytest.approx(float((found == y).float().mean()), abs=0.02)
    assert known["robust"] == pytest.approx(float(ours[1].float().mean()), abs=0.02)
    entry = json.loads((tmp_path / "model_info" / "cifar10" / "Linf" / "digits.json").read_text(encoding="utf-8"))
    known["robustbench"].utils.ModelInfo(**entry)
    assert float(entry["clean_acc"]) == pytest.approx(100 * known["clean"], abs=0.01)
    assert float(entry["autoattack_acc"]) == pytest.approx(100 * known["robust"], abs=0.01)
    assert entry["eps"] == EPS


def test_lightning_gives_the_margins_of_the_plain_loop(place, ours, monkeypatch, tmp_path):
    """In float64; also when a training continues after seven of twenty epochs, and on two workers."""
    known = run_section("Lightning", ours, monkeypatch, place)
    assert known["module"].im.epoch == 3
    lightning, x, y = known["lightning"], known["x"][:90].double(), known["y"][:90]
    data, settings = TensorDataset(x, y, torch.arange(90)), {"eps_max": EPS, "epochs": 20, "box": (0.0, 1.0)}

    class Module(known["WithMargins"]):
        def train_dataloader(self):
            shared = dist.is_initialized()
            sampler = DistributedSampler(data, shuffle=False, drop_last=True) if shared else None
            return DataLoader(data, batch_size=15 if shared else 30, sampler=sampler)

        def on_train_end(self):
            self.trainer.save_checkpoint(self.file)

    def begin():
        torch.manual_seed(1)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU())
        network.append(torch.nn.Linear(32, 10)).double()
        return Module(network, 90, **settings, dtype=torch.float64)

    plain = begin()
    plain.setup("fit")
    optimizer = plain.configure_optimizers()
    for _ in range(20):
        for inputs, labels, indices in plain.train_dataloader():
            noisy = plain.im.attack(plain.network, inputs, labels, indices)
            loss = plain.im.loss(plain.network(noisy.inputs), labels, noisy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        plain.im.update()
    assert len(plain.im.margins.unique()) > 10

    def fit(name, epochs, ckpt_path=None, **options):
        """The margins and weights after ``epochs`` epochs."""
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", **quiet, **options)
        module = begin()
        module.file = tmp_path / name
        trainer.fit(module, ckpt_path=ckpt_path)
        return torch.load(tmp_path / name, weights_only=True)

    whole = fit("whole.ckpt", 20)
    fit("first.ckpt", 7)
    continued = fit("second.ckpt", 20, tmp_path / "first.ckpt")
    two = fit("two.ckpt", 20, devices=2, strategy="ddp_fork", use_distributed_sampler=False)
    for found in (whole, continued, two):
        torch.testing.assert_close(found["im"]["margins"], plain.im.margins, rtol=0, atol=1e-12)
        for name, value in plain.network.state_dict().items():
            torch.testing.assert_close(found["state_dict"][f"network.{name}"], value, rtol=0, atol=1e-12)

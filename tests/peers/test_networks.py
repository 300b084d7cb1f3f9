"""Networks of timm train, and weights saved from DataParallel start a training of a torchvision network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import ima_dist
from ima_dist import train
from ima_dist.rundir.directory import RunDir
from tests.support import digits


def two_epochs(out: Path, *options: str) -> RunDir:
    words = [
        "own", "--local", "--name", "digits", "--eps-max", "0.1", "--eval.noise", "0,0.1", "--epochs", "2",
        "--batch-size", "16", "--attack.steps", "2", "--eval.steps", "2", "--device", "cpu", *options,
        "--out", str(out),
    ]  # fmt: skip
    assert train.main(words) == 0
    return RunDir(out)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_networks_of_timm(tmp_path, name):
    """For ten classes, one channel and 32 × 32 pixels; the last one is made for 224 × 224."""
    run = two_epochs(
        tmp_path / "run", "--data.source", "tests.support.digits:enlarged", "--model.factory", f"timm:{name}"
    )
    assert run.summary()["status"] == "finished"
    assert len(run.read_history()) == 2
    test = digits.enlarged(None, 0)["test"]
    labels, probabilities = ima_dist.load(run.path).predict(test[0])
    assert probabilities.shape == (64, 10)
    assert (labels == test[1]).mean() == run.summary()["clean_accuracy"]


def test_weights_of_data_parallel_start_a_training(tmp_path):
    """ResNet-18 for 1000 classes, and digits of three."""
    given = nn.DataParallel(torchvision.models.resnet18()).state_dict()
    assert all(name.startswith("module.") for name in given)
    torch.save(given, tmp_path / "resnet18.pt")
    options = ["--data.source", "tests.support.digits:load", "--data.args.classes", "3", "--data.subset", "64",
               "--model.factory", "torchvision:resnet18"]  # fmt: skip
    run = two_epochs(tmp_path / "run", *options, "--model.weights", str(tmp_path / "resnet18.pt"))
    assert run.summary()["status"] == "finished"
    network = ima_dist.load(run.path).network.state_dict()
    assert network["fc.weight"].shape == (3, 512)
    # Two epochs leave the weights close to those that were given.
    close = np.corrcoef(network["layer3.0.conv2.weight"].flatten(), given["module.layer3.0.conv2.weight"].flatten())
    assert close[0, 1] > 0.9

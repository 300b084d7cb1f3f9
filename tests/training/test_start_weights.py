"""Networks of libraries by name, inputs normalised inside the network, a training that starts from given weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from ima_dist import train
from ima_dist.config.errors import ConfigError, DataWarning
from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.rundir.directory import RunDir
from ima_dist.training.network import make_network
from tests.support.inline import without_ray
from tests.support.small_images import SIDE, cnn, four_classes

DATA = four_classes(None, 0)


def configured(factory: str = "tests.support.small_images:cnn", **options: object) -> Config:
    given = {"name": "small", "data.source": "tests.support.small_images:four_classes", "model.factory": factory}
    return make_config("own", {**given, "eps_max": 0.1, "eval.noise": (0.0, 0.1), "dtype": "float64", **options})


def trained(classes: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(99)
    return cnn(classes, (1, SIDE, SIDE)).state_dict()


def test_weights_saved_from_data_parallel_start_a_network_for_fewer_classes(tmp_path):
    """ResNet-18 for 1000 classes and colours, saved whole with an epoch, for four classes of grey images."""
    torch.manual_seed(1)
    given = torchvision.models.resnet18().state_dict()
    file = tmp_path / "resnet.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in given.items()}}, file)
    config = configured("torchvision:resnet18", **{"model.weights": str(file)})
    with pytest.warns(DataWarning) as said:
        network = make_network(config, DATA)
    assert [str(w.message) for w in said] == [
        "The given weights are for colours: conv1.weight is summed over its three channels.",
        "The last layer (fc) of the given weights is for 1000 classes, not 4: it starts untrained.",
    ]
    own = network.state_dict()
    assert own["fc.weight"].shape == (4, 512)
    torch.testing.assert_close(own["conv1.weight"], given["conv1.weight"].sum(1, keepdim=True).double())
    for name in given.keys() - {"conv1.weight", "fc.weight", "fc.bias"}:
        torch.testing.assert_close(own[name], given[name].to(own[name].dtype), rtol=0, atol=0)

    given["layer1.0.conv1.wieght"] = given.pop("layer1.0.conv1.weight")
    torch.save(given, file)
    with pytest.raises(ConfigError, match=r"lacks layer1\.0\.conv1\.weight and has layer1\.0\.conv1\.wieght too much"):
        make_network(configured("torchvision:resnet18", **{"model.weights": str(file)}), DATA)
    config = configured("torchvision:resnet18", **{"model.weights": str(file), "model.weights_strict": False})
    with pytest.warns(DataWarning, match="wieght"):
        make_network(config, DATA)


def _truncated(file: Path) -> None:
    save_file(trained(), file)
    file.write_bytes(file.read_bytes()[:-100])


def _pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps({"weights": pytest.raises}))


def _whole_network(file: Path) -> None:
    torch.save(cnn(4, (1, SIDE, SIDE)), file)


def _another(file: Path) -> None:
    save_file(torch.nn.Linear(3, 4).state_dict(), file)


def _wider(file: Path) -> None:
    save_file({n: torch.cat([v, v]) if n.startswith("0.") else v for n, v in trained().items()}, file)


def _whole_numbers(file: Path) -> None:
    save_file({name: value.to(torch.int8) for name, value in trained().items()}, file)


def _list(file: Path) -> None:
    torch.save([torch.zeros(2)], file)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (_truncated, "is damaged, or neither safetensors nor made by torch.save"),
        (_pickled, "holds more than tensors"),
        (_whole_network, "holds more than tensors"),
        (_another, "lacks .* and has bias, weight too much"),
        (_wider, "has the shape"),
        (_whole_numbers, "as torch.int8, but the network as torch.float32"),
        (_list, "does not hold a state dict"),
        (Path.touch, "is damaged"),
    ],
)
def test_a_file_that_is_no_use_is_refused_in_one_sentence(tmp_path, write, sentence):
    file = tmp_path / "weights"
    write(file)
    with pytest.raises(ConfigError, match=sentence) as refused:
        make_network(configured(**{"model.weights": str(file)}), DATA)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        configured(**{"model.weights": str(tmp_path / "none")})


def test_a_run_keeps_the_weights_that_it_started_from(tmp_path, monkeypatch):
    """They are in its fingerprint by checksum, and it goes on when the user's file has changed."""
    without_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    save_file(trained(), "weights.safetensors")
    flags = ["--local", "--name", "small", "--data.source", "tests.support.small_images:four_classes",
             "--model.factory", "tests.support.small_images:cnn", "--eps-max", "0.1", "--eval.noise", "0,0.1",
             "--epochs", "1", "--attack.steps", "2", "--eval.steps", "2", "--optimizer.lr", "1e-12",
             "--dtype", "float64", "--model.weights", "weights.safetensors"]  # fmt: skip
    assert train.main(["own", *flags, "--out", "run"]) == 0
    run = RunDir(tmp_path / "run")
    saved = load_file(run.checkpoints_dir / "epoch=0001" / "model.safetensors")
    for name, value in trained().items():
        if value.is_floating_point():
            torch.testing.assert_close(saved[name], value.double(), rtol=0, atol=1e-6)
    before = run.config().fingerprint()
    save_file(trained(5), "weights.safetensors")
    assert run.config().fingerprint() == before
    make_network(run.config(), DATA, run)
    monkeypatch.chdir("/")
    assert configured(**{"model.weights": str(tmp_path / "weights.safetensors")}).fingerprint() != before
    (kept,) = run.start_dir.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigError, match="is damaged"):
        make_network(run.config(), DATA, run)


def test_normalisation_is_part_of_the_network(tmp_path):
    plain, normal = configured(), configured(**{"model.mean": (0.25,), "model.std": (0.5,)})
    assert plain.fingerprint() != normal.fingerprint()
    x = torch.rand(3, 1, SIDE, SIDE, dtype=torch.float64)
    torch.testing.assert_close(make_network(normal, DATA).eval()(x), make_network(plain, DATA).eval()((x - 0.25) / 0.5))
    with pytest.raises(ConfigError, match="has 2 values, but the samples have 1 channels"):
        make_network(configured(**{"model.mean": (0.1, 0.2)}), DATA)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_networks_of_torchvision_take_the_data_s_classes_and_channels(name):
    network = make_network(configured(f"torchvision:{name}"), four_classes_at(64))
    assert network.eval()(torch.zeros(2, 1, 64, 64, dtype=torch.float64)).shape == (2, 4)


def four_classes_at(side: int):
    from dataclasses import replace

    from ima_dist.data.types import Split

    def split(part: Split) -> Split:
        return Split(part.stored.repeat_interleave(7, 2).repeat_interleave(7, 3)[..., :side, :side], part.y)

    return replace(DATA, **{name: split(getattr(DATA, name)) for name in ("train", "val", "test")})


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("torchvision:resnet81", r"torchvision has no network 'resnet81' \(did you mean resnet"),
        ("timm:resnet18", "needs timm"),
    ],
)
def test_a_network_that_is_not_there_is_refused(factory, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_network(configured(factory), DATA)

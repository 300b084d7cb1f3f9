"""The paper's networks: their parameters counted by hand, their shapes, and samples that do not touch each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ima_dist import models
from ima_dist.models import sequential
from ima_dist.models.wide_resnet import PerImageStandardize


def conv(inputs: int, outputs: int, size: int, bias: bool = True) -> int:
    return inputs * outputs * size**2 + bias * outputs


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def norm(features: int) -> int:
    """Layer or batch norm: a scale and a shift each. Instance norm has none."""
    return 2 * features


MOONS = linear(2, 32) + linear(32, 64) + norm(64) + linear(64, 128) + norm(128) + linear(128, 2)
FASHION = (
    conv(1, 64, 5)
    + conv(64, 128, 5, bias=False)
    + conv(128, 256, 5, bias=False)
    + conv(256, 512, 4)
    + norm(512)
    + linear(512, 10)
)
SVHN = (
    conv(3, 32, 3)
    + conv(32, 32, 3, bias=False)
    + conv(32, 64, 3, bias=False)
    + conv(64, 64, 3, bias=False)
    + conv(64, 128, 3, bias=False)
    + conv(128, 128, 3, bias=False)
    + conv(128, 256, 4)
    + norm(256)
    + linear(256, 10)
)
LENET5 = conv(1, 32, 5) + conv(32, 64, 5) + linear(3136, 1024) + linear(1024, 10)
# Two blocks of two 3×3 convolutions in each of four stages; 1×1 shortcuts where the width doubles.
RESNET18 = (
    conv(1, 64, 7, bias=False)
    + 4 * conv(64, 64, 3, bias=False)
    + sum(
        conv(w // 2, w, 3, bias=False) + 3 * conv(w, w, 3, bias=False) + conv(w // 2, w, 1, bias=False)
        for w in (128, 256, 512)
    )
    + linear(512, 2)
)
# Of all its norms: the stem's, four in each stage, and one for each of three shortcuts.
RESNET18_CHANNELS = 64 + 4 * (64 + 128 + 256 + 512) + 128 + 256 + 512
# Four blocks in each of three stages, the first with a 1×1 shortcut; norms before the convolutions.
WRN_28_4 = (
    conv(3, 16, 3, bias=False)
    + sum(
        norm(v) + conv(v, w, 3, bias=False) + conv(v, w, 1, bias=False) + 7 * (norm(w) + conv(w, w, 3, bias=False))
        for v, w in ((16, 64), (64, 128), (128, 256))
    )
    + norm(256)
    + linear(256, 10)
)

NETWORKS = {
    "moons_mlp": (2, (2,), MOONS, 11170),
    "fashion_mnist_cnn": (10, (1, 28, 28), FASHION, 3129482),
    "svhn_cnn": (10, (3, 32, 32), SVHN, 814218),
    "mnist_lenet5": (10, (1, 28, 28), LENET5, 3274634),
    "resnet18_in": (2, (1, 224, 224), RESNET18, 11161666),
    "resnet18_gn": (2, (1, 224, 224), RESNET18 + norm(RESNET18_CHANNELS), 11171266),
    "resnet18_bn": (
        9,
        (3, 28, 28),
        RESNET18
        + norm(RESNET18_CHANNELS)
        - conv(1, 64, 7, bias=False)
        + conv(3, 64, 3, bias=False)
        + linear(512, 9)
        - linear(512, 2),
        11173449,
    ),
    "wrn_28_4": (10, (3, 32, 32), WRN_28_4, 5849050),
    # ResNet-18 with a first convolution of 3×3.
    "default_network": (2, (1, 28, 28), RESNET18 - conv(1, 64, 7, bias=False) + conv(1, 64, 3, bias=False), 11159106),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str) -> nn.Module:
    classes, shape, _, _ = NETWORKS[name]
    torch.manual_seed(0)
    return getattr(models, name)(classes, shape)


def test_every_exported_network_is_tested() -> None:
    assert set(NETWORKS) == set(models.__all__)


@every_network
def test_number_of_parameters(name: str) -> None:
    _, _, by_hand, written = NETWORKS[name]
    assert by_hand == written
    assert sum(p.numel() for p in build(name).parameters()) == written


@every_network
def test_samples_do_not_touch_each_other_in_evaluation(name: str) -> None:
    classes, shape, _, _ = NETWORKS[name]
    shape = (1, 64, 64) if name in ("resnet18_in", "resnet18_gn") else shape
    network = build(name).double()
    if name in ("wrn_28_4", "resnet18_bn"):
        # Statistics other than the untrained network's zeros and ones.
        network(torch.rand(4, *shape, dtype=torch.float64))
    network.eval()
    x = torch.rand(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(sample[None]) for sample in x])
    assert together.shape == (3, classes)
    assert (together - alone).abs().max() < 1e-12
    assert (together[0] - together[1]).abs().max() > 1e-6


@every_network
def test_every_parameter_receives_a_gradient(name: str) -> None:
    shape = (1, 64, 64) if name in ("resnet18_in", "resnet18_gn") else NETWORKS[name][1]
    network = build(name)
    F.cross_entropy(network(torch.rand(2, *shape)), torch.tensor([0, 1])).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-9, parameter_name


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("svhn_cnn", (1, 25, 32)),
        ("fashion_mnist_cnn", (3, 25, 28)),
        ("mnist_lenet5", (3, 31, 28)),
        ("resnet18_in", (3, 33, 40)),
        ("resnet18_in", (1, 224, 224)),
        ("wrn_28_4", (1, 20, 40)),
        ("default_network", (3, 9, 12)),
        ("default_network", (1, 64, 80)),
        ("default_network", (5,)),
    ],
)
def test_other_classes_channels_and_sizes(name: str, shape: tuple[int, ...]) -> None:
    network = getattr(models, name)(7, shape).eval()
    assert network(torch.rand(2, *shape)).shape == (2, 7)


def test_the_default_network_has_a_stem_for_small_images_only() -> None:
    assert models.default_network(2, (1, 63, 64)).conv1.stride == (1, 1)
    assert models.default_network(2, (1, 64, 64)).conv1.stride == (2, 2)
    tiny = models.default_network(10, (1, 8, 8))
    tiny(torch.rand(4, 1, 8, 8)).sum().backward()
    assert tiny[1].in_features == 64
    assert next(iter(models.default_network(2, (5,)).state_dict())) == "0.weight"  # as in saved runs
    with pytest.raises(ValueError, match=r"name a --model\.factory"):
        models.default_network(2, (1, 8, 8, 8))


def test_resnet_is_torchvisions_with_other_norms() -> None:
    torchvision = pytest.importorskip("torchvision")
    ours = models.resnet18_in(10, (3, 64, 64))
    theirs = torchvision.models.resnet18(num_classes=10)
    norms = {name for name, module in theirs.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name for name, module in ours.named_modules() if isinstance(module, nn.InstanceNorm2d)} == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    ours_shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert ours_shapes == {k: v.shape for k, v in theirs.state_dict().items() if k.rsplit(".", 1)[0] not in norms}


def test_standardised_images_have_mean_zero_and_deviation_one() -> None:
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64) * torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1) + 2
    out = PerImageStandardize()(x).flatten(1)
    assert torch.allclose(out.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(out.std(1), torch.ones(3, dtype=torch.float64), atol=1e-12)


@pytest.mark.filterwarnings("ignore:var_mean")
def test_an_empty_batch_passes_through_standardisation() -> None:
    assert PerImageStandardize()(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_constant_image_stays_finite_through_standardisation() -> None:
    x = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64, requires_grad=True)
    out = PerImageStandardize()(x)
    weights = torch.linspace(-1, 1, 192, dtype=torch.float64).view(1, 3, 8, 8)
    (out * weights).sum().backward()
    assert out.abs().max() == 0
    # The weights have mean zero, and the smallest deviation is 1 / sqrt(192).
    assert x.grad is not None
    assert torch.allclose(x.grad, weights * math.sqrt(192))


def test_a_convolution_over_its_whole_input_is_a_matrix_product():
    whole = sequential.WholeConv2d(3, 5, 4).double()
    plain = nn.Conv2d(3, 5, 4).double()
    plain.load_state_dict(whole.state_dict())
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(whole(x), plain(x), atol=1e-12)
    (ours,), (theirs,) = (torch.autograd.grad(network(x).square().sum(), x) for network in (whole, plain))
    assert torch.allclose(ours, theirs, atol=1e-12)

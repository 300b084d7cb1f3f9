"""Network of appendix D.2 for CIFAR-10: a wide residual network (Zagoruyko & Komodakis 2016)."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DEPTH, _WIDTH = 28, 4


def wrn_28_4(num_classes: int = 10, input_shape: tuple[int, ...] = (3, 32, 32)) -> nn.Module:
    """WRN-28-4 with batch norm and without dropout, behind per-image standardisation.

    This is the network of the MMA paper (Ding et al. 2019a), whose published code standardises each image
    inside the network, so that attacks go through it. (B, 3, 32, 32) -> logits (B, num_classes).
    """
    blocks = (_DEPTH - 4) // 6
    layers: list[nn.Module] = [PerImageStandardize(), _conv(input_shape[0], 16, 3)]
    channels = 16
    for stage, width in enumerate((16 * _WIDTH, 32 * _WIDTH, 64 * _WIDTH)):
        for block in range(blocks):
            layers.append(_Block(channels, width, stride=2 if stage > 0 and block == 0 else 1))
            channels = width
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    last = nn.Linear(channels, num_classes)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class PerImageStandardize(nn.Module):
    """Each image minus its mean, divided by its standard deviation, over all pixels and channels.

    (B, C, H, W) -> the same shape. The deviation counts as at least 1/sqrt(C·H·W), as in TensorFlow's function of
    that name; a constant image becomes zero, with a finite gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), keepdim=True)
        # Bounded before the root, whose gradient at zero is infinite.
        return (x - mean) * variance.clamp(min=1 / math.prod(x.shape[1:])).rsqrt()


class _Block(nn.Module):
    """Batch norm, ReLU and convolution, twice, beside a shortcut ("B(3, 3)" with pre-activation)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = _conv(channels, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        # Every change of size in this network is also a change of width.
        self.shortcut = _conv(channels, width, 1, stride) if channels != width else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return cast(Tensor, residual + (x if self.shortcut is None else self.shortcut(active)))


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (size * size * outputs)))
    return layer

"""Networks that are one sequence of layers: for Moons, Fashion-MNIST, SVHN (section 3) and MNIST (appendix D.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WholeConv2d(nn.Conv2d):
    """A convolution whose kernel is as large as its input: a product of matrices, on a CPU in a third of the time.

    (B, C, height, width) -> (B, out_channels, 1, 1), for a kernel of (height, width) without padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # torch 2.7 cannot export the product for batches of any size.
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


def moons_mlp(num_classes: int = 2, input_shape: tuple[int, ...] = (2,)) -> nn.Module:
    """Linear 2-32, 32-64 with layer norm, 64-128 with layer norm, 128-2, leaky ReLU between (section 3.1).

    (B, 2) -> logits (B, num_classes).
    """
    return nn.Sequential(
        nn.Linear(input_shape[0], 32),
        nn.LeakyReLU(),
        nn.Linear(32, 64),
        nn.LayerNorm(64),
        nn.LeakyReLU(),
        nn.Linear(64, 128),
        nn.LayerNorm(128),
        nn.LeakyReLU(),
        nn.Linear(128, num_classes),
    )


def mnist_lenet5(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 28, 28)) -> nn.Module:
    """LeNet5 of the MMA paper (Ding et al. 2019a), first used by Madry et al. (2017): two convolutions, two linear.

    (B, 1, 28, 28) -> logits (B, num_classes). Sides of 28 to 31 pixels fit.
    """
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 7 * 64, 1024),
        nn.ReLU(),
        nn.Linear(1024, num_classes),
    )


def fashion_mnist_cnn(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 28, 28)) -> nn.Module:
    """Four convolutions, instance norm after the second and third, layer norm, one linear (section 3.2).

    (B, 1, 28, 28) -> logits (B, num_classes). Sides of 25 to 28 pixels fit.
    """
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 64, 5, stride=2, padding=2),
        nn.LeakyReLU(),
        nn.Conv2d(64, 128, 5, stride=2, padding=2, bias=False),
        nn.InstanceNorm2d(128),
        nn.LeakyReLU(),
        nn.Conv2d(128, 256, 5, stride=2, padding=2, bias=False),
        nn.InstanceNorm2d(256),
        nn.LeakyReLU(),
        WholeConv2d(256, 512, 4),
        nn.Flatten(),
        nn.LayerNorm(512),
        nn.LeakyReLU(),
        nn.Linear(512, num_classes),
    )


def svhn_cnn(num_classes: int = 10, input_shape: tuple[int, ...] = (3, 32, 32)) -> nn.Module:
    """Seven convolutions, instance norm after the second to sixth, layer norm, one linear (section 3.2).

    (B, 3, 32, 32) -> logits (B, num_classes). Sides of 25 to 32 pixels fit.
    """
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 32, 3, padding=1), nn.LeakyReLU()]
    for inputs, outputs, stride in ((32, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 1), (128, 128, 2)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.InstanceNorm2d(outputs), nn.LeakyReLU()]
    layers += [WholeConv2d(128, 256, 4), nn.Flatten(), nn.LayerNorm(256), nn.LeakyReLU(), nn.Linear(256, num_classes)]
    return nn.Sequential(*layers)

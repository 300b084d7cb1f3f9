"""Network of section 3.2 for SVHN."""

from __future__ import annotations

from torch import nn


def svhn_cnn(num_classes: int = 10, input_shape: tuple[int, ...] = (3, 32, 32)) -> nn.Module:
    """Seven convolutions, instance norm after the second to sixth, layer norm, one linear (section 3.2).

    (B, 3, 32, 32) -> logits (B, num_classes). Sides of 25 to 32 pixels fit.
    """
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 32, 3, stride=1, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
        nn.InstanceNorm2d(32),
        nn.LeakyReLU(),
        nn.Conv2d(32, 64, 3, stride=1, padding=1, bias=False),
        nn.InstanceNorm2d(64),
        nn.LeakyReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False),
        nn.InstanceNorm2d(64),
        nn.LeakyReLU(),
        nn.Conv2d(64, 128, 3, stride=1, padding=1, bias=False),
        nn.InstanceNorm2d(128),
        nn.LeakyReLU(),
        nn.Conv2d(128, 128, 3, stride=2, padding=1, bias=False),
        nn.InstanceNorm2d(128),
        nn.LeakyReLU(),
        nn.Conv2d(128, 256, 4),
        nn.Flatten(),
        nn.LayerNorm(256),
        nn.LeakyReLU(),
        nn.Linear(256, num_classes),
    )

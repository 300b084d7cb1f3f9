"""Network of section 3.1."""

from torch import nn


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

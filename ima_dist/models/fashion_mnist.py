"""Network of section 3.2 for Fashion-MNIST."""

from torch import nn


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
        nn.Conv2d(256, 512, 4),
        nn.Flatten(),
        nn.LayerNorm(512),
        nn.LeakyReLU(),
        nn.Linear(512, num_classes),
    )

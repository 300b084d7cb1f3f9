"""Network of appendix D.1 for MNIST."""

from torch import nn


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

"""Network of section 3.2 for SVHN."""

from torch import nn


def svhn_cnn(num_classes: int = 10, input_shape: tuple[int, ...] = (3, 32, 32)) -> nn.Module:
    """Seven convolutions, instance norm after the second to sixth, layer norm, one linear (section 3.2).

    (B, 3, 32, 32) -> logits (B, num_classes). Sides of 25 to 32 pixels fit.
    """
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 32, 3, padding=1), nn.LeakyReLU()]
    for inputs, outputs, stride in ((32, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 1), (128, 128, 2)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.InstanceNorm2d(outputs), nn.LeakyReLU()]
    layers += [nn.Conv2d(128, 256, 4), nn.Flatten(), nn.LayerNorm(256), nn.LeakyReLU(), nn.Linear(256, num_classes)]
    return nn.Sequential(*layers)

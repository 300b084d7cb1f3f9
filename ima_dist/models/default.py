"""The network of one's own data where none is named."""

import math

from torch import nn

from ima_dist.models.resnet import resnet18_in

# Below so many pixels a stem that halves the image twice leaves too little of it, and up to so many every stem leaves a
# single pixel, which instance norm makes 0.
_SMALL, _TINY = 64, 8


def default_network(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """For images (channels, height, width) ResNet-18 with instance norm, without stride in its stem for sides below 64
    pixels; for tables (features,), and images of at most 8×8, three linear layers with layer norm. Untrained, to logits
    (B, num_classes).

    Raises ValueError for samples of other shapes.
    """
    if len(input_shape) not in (1, 3):
        raise ValueError("it takes images (channels, height, width) or tables (features): name a --model.factory")
    if max(input_shape[1:], default=0) <= _TINY:
        layers = [nn.Linear(math.prod(input_shape), 128), nn.LayerNorm(128), nn.ReLU()]
        layers += [nn.Linear(128, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, num_classes)]
        # Without Flatten for tables, so that saved networks keep the names of their layers.
        return nn.Sequential(*layers) if len(input_shape) == 1 else nn.Sequential(nn.Flatten(), *layers)
    return resnet18_in(num_classes, input_shape, small=min(input_shape[1:]) < _SMALL)

"""The network of one's own data where none is named."""

from torch import nn

from ima_dist.models.resnet import resnet18_in

# Below so many pixels a stem that halves the image twice leaves too little of it.
_SMALL = 64


def default_network(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """For images (channels, height, width) ResNet-18 with instance norm, without stride in its stem for sides below 64
    pixels; for tables (features,) three linear layers with layer norm. Untrained, to logits (B, num_classes).

    Raises ValueError for samples of other shapes.
    """
    if len(input_shape) == 1:
        return nn.Sequential(
            nn.Linear(input_shape[0], 128),
            nn.LayerNorm(128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.LayerNorm(128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )
    if len(input_shape) != 3:
        raise ValueError("it takes images (channels, height, width) or tables (features): name a --model.factory")
    return resnet18_in(num_classes, input_shape, small=min(input_shape[1:]) < _SMALL)

"""Network of section 3.3 for COVID-19 CT images."""

from torch import nn


def resnet18_in(num_classes: int = 2, input_shape: tuple[int, ...] = (1, 224, 224), small: bool = False) -> nn.Module:
    """torchvision's ResNet-18, untrained, with instance norm in place of batch norm (section 3.3).

    (B, channels, height, width) -> logits (B, num_classes). Sides of at least 33 pixels fit: instance norm
    needs more than one pixel. The first convolution takes the data's number of channels, here grey.
    small: a 3×3 convolution without stride and no pooling in front, for sides of at least 9 pixels.
    """
    # torchvision takes seconds to import, and only this network needs it.
    from torchvision.models import resnet18

    network = resnet18(weights=None, num_classes=num_classes, norm_layer=nn.InstanceNorm2d)
    if small:
        network.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif input_shape[0] != 3:
        network.conv1 = nn.Conv2d(input_shape[0], 64, 7, stride=2, padding=3, bias=False)
    if small or input_shape[0] != 3:
        # As torchvision draws the weights of every convolution (He et al. 2015).
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network

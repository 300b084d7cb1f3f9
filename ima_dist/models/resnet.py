"""ResNet-18, for COVID-19 CT images (section 3.3) and as in the authors' journal article."""

from collections.abc import Callable

from torch import nn


def resnet18_in(num_classes: int = 2, input_shape: tuple[int, ...] = (1, 224, 224), small: bool = False) -> nn.Module:
    """torchvision's ResNet-18, untrained, with instance norm in place of batch norm (section 3.3).

    (B, channels, height, width) -> logits (B, num_classes). Sides of at least 33 pixels fit: instance norm
    needs more than one pixel. The first convolution takes the data's number of channels, here grey.
    small: a 3×3 convolution without stride and no pooling in front, for sides of at least 9 pixels.
    """
    return _resnet18(num_classes, input_shape, small, nn.InstanceNorm2d)


def resnet18_gn(num_classes: int = 2, input_shape: tuple[int, ...] = (1, 224, 224)) -> nn.Module:
    """As ``resnet18_in``, with group norm of one channel per group: instance norm with parameters.

    For COVID-19 CT images in the journal article (Ma and Liang, Comput. Methods Programs Biomed. 240, 2023).
    """
    return _resnet18(num_classes, input_shape, False, lambda channels: nn.GroupNorm(channels, channels))


def resnet18_bn(num_classes: int = 9, input_shape: tuple[int, ...] = (3, 28, 28)) -> nn.Module:
    """ResNet-18 with batch norm for small images, untrained: a 3×3 convolution without stride and no pooling in front.

    (B, channels, height, width) -> logits (B, num_classes). For PathMNIST in the journal article.
    """
    return _resnet18(num_classes, input_shape, True, nn.BatchNorm2d)


def _resnet18(
    num_classes: int, input_shape: tuple[int, ...], small: bool, norm_layer: Callable[..., nn.Module]
) -> nn.Module:
    # torchvision takes seconds to import, and only these networks need it.
    from torchvision.models import resnet18

    network = resnet18(weights=None, num_classes=num_classes, norm_layer=norm_layer)
    if small:
        network.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif input_shape[0] != 3:
        network.conv1 = nn.Conv2d(input_shape[0], 64, 7, stride=2, padding=3, bias=False)
    if small or input_shape[0] != 3:
        # As torchvision draws the weights of every convolution (He et al. 2015).
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network

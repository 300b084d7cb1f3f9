"""The paper's networks. A factory takes (num_classes, input_shape) and returns an untrained nn.Module.

The paper writes "IN" and "LN" without saying whether instance norm has parameters; torch's default, none,
is used. A bias whose effect the following instance norm cancels is left out: its gradient would be rounding
noise, which Adam turns into real steps.
"""

from ima_dist.models.default import default_network
from ima_dist.models.resnet import resnet18_bn, resnet18_gn, resnet18_in
from ima_dist.models.sequential import fashion_mnist_cnn, mnist_lenet5, moons_mlp, svhn_cnn
from ima_dist.models.wide_resnet import wrn_28_4

__all__ = [
    "default_network",
    "fashion_mnist_cnn",
    "mnist_lenet5",
    "moons_mlp",
    "resnet18_bn",
    "resnet18_gn",
    "resnet18_in",
    "svhn_cnn",
    "wrn_28_4",
]

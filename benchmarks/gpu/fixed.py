"""``bpgd`` with one shape from the first step to the last: on a card without a wait, so it can be a CUDA graph."""

from typing import Any
from unittest import mock

from torch import nn

from ima_dist.attacks import bpgd, shapes
from ima_dist.attacks.bpgd import BoundaryResult


def bpgd_fixed(network: nn.Module, *arguments: Any, **options: Any) -> BoundaryResult:
    """``attacks.bpgd`` in the form that it has for small networks, whatever the size of this one."""
    with mock.patch.object(shapes, "keeps_shape", return_value=True):
        return bpgd(network, *arguments, **options)

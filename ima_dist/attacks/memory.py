"""How many samples an attack can take at once in the memory of a card."""

import sys

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import attack_mode, cross_entropy, logits_and_gradient

# Samples of the smaller of the two measured batches.
_FEW = 4
# Tensors of a batch's shape that an attack holds besides the network's activations: iterates, gradients, the
# sorted copies of FAB's projection.
_COPIES = 64
# The training step, cuDNN's workspaces and fragments of free memory need the rest.
_SHARE = 0.5


def most_at_once(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """The most samples that a step of an attack may take at once on the device of ``x``: no bound on a CPU.

    Two batches of the samples x (N, ...) with labels y (N,) are attacked for one step, and the difference of their
    peaks is the memory of a sample. torch's allocator counts on the host, so nothing forces a sync. The answer is a
    power of two, so that small differences between two starts do not change where batches are cut.
    """
    if x.device.type != "cuda":
        return sys.maxsize
    rows = torch.arange(2 * _FEW, device=x.device) % len(x)
    x, y = x[rows], y[rows]
    _peak(network, x, y)  # libraries allocate their workspaces
    sample = (_peak(network, x, y) - _peak(network, x[:_FEW], y[:_FEW])) / _FEW
    sample = max(sample, 0.0) + _COPIES * x[0].numel() * x.element_size()
    free, _ = torch.cuda.mem_get_info(x.device)
    cached = torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
    fitting = int(_SHARE * (free + cached) / sample)
    return 1 << max(fitting.bit_length() - 1, 0)


def _peak(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """Bytes that one step of an attack adds to what is allocated, at its peak."""
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    with torch.no_grad(), attack_mode(network):
        logits_and_gradient(network, x, y, cross_entropy)
    return torch.cuda.max_memory_allocated(x.device) - before

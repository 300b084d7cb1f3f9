"""The exponential moving average of the weights (``--ema``), which is what a run results in."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ima_dist.config.errors import ConfigError, first_line

_Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An average that begins as a copy of ``network``; its ``module`` is the averaged network.

    After update n the decay is min(decay, (1 + n) / (10 + n)), so that the initial weights are soon forgotten (as
    TensorFlow's ExponentialMovingAverage does with num_updates). Buffers are averaged with the weights: the running
    statistics of batch norm belong to the weights of the same steps. Whole numbers, such as counters, are copied.

    Raises ConfigError if the network cannot be copied.
    """

    def mix(averages: _Tensors, current: _Tensors, _: Tensor | int) -> None:
        updates = int(average.n_averaged)  # the number that is given would be read from the device
        now = min(decay, (1 + updates) / (10 + updates))
        if averages[0].is_floating_point() or averages[0].is_complex():
            torch._foreach_lerp_(list(averages), list(current), 1 - now)
        else:
            torch._foreach_copy_(list(averages), list(current))

    try:
        average = AveragedModel(network, multi_avg_fn=mix, use_buffers=True)
    except Exception as error:
        raise ConfigError(f"--ema needs a copy of the network, which fails: {first_line(error)}.") from error
    return average

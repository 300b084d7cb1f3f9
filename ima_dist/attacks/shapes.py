"""Whether an attack's working batch shrinks as its samples are done, or keeps one shape.

To find out which samples are done, the host has to look at values. On a card such a look is a wait, after which the
card has nothing to do until the host has launched more; and a new shape needs new plans of cuDNN. A smaller batch pays
only if a pass's time is that of its arithmetic, and not that of launching its operations. Both are counted in a
network's first pass, so that the answer is the same at every start.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ima_dist.attacks.common import Network
from ima_dist.attacks.counting import Counted

# Additions and multiplications that take as long as launching one operation. On a CPU measured
# (benchmarks/compaction.py), on a card computed: 10 µs at 30·10¹² per second.
_AS_LONG_AS_A_LAUNCH = {"cpu": 5e5, "cuda": 3e8}


@dataclass(frozen=True)
class Cost:
    """Of a pass: ``arithmetic`` of a sample, in additions and multiplications, and ``launches`` of the batch."""

    arithmetic: float
    launches: int


_COSTS: WeakKeyDictionary[nn.Module, Cost] = WeakKeyDictionary()


def passed(model: Network, x: Tensor) -> Tensor:
    """The network's logits (B, C) for the samples x (B, ...); its first pass is counted for ``keeps_shape``."""
    network = _network(model)
    if network is None or network in _COSTS or not len(x):
        return model(x)
    with _Counting() as counted:
        logits = model(x)
    _COSTS[network] = Cost(counted.arithmetic / len(x), max(counted.launches, 1))
    return logits


def keeps_shape(model: Network, x: Tensor) -> bool:
    """Whether an attack on the samples x (B, ...), which have ``passed`` the network, keeps all of them to its end."""
    network = _network(model)
    cost = None if network is None else _COSTS.get(network)
    on_card = x.device.type != "cpu"
    if cost is None or not len(x):
        return on_card and len(x) > 0
    most = _AS_LONG_AS_A_LAUNCH["cuda" if on_card else "cpu"]
    return cost.arithmetic * len(x) <= most * cost.launches


def rounded_up(rows: Tensor, whole: int) -> Tensor:
    """On a card ``rows`` (K,) int64, some of them twice, so that a batch of ``whole`` samples shrinks to few sizes.

    The first K are ``rows``. cuDNN plans every shape anew.
    """
    if rows.device.type == "cpu" or not len(rows):
        return rows
    eighth = -(-whole // 8)
    return torch.cat([rows, rows[:1].expand(-len(rows) % eighth)])


def _network(model: Network) -> nn.Module | None:
    inner = model.network if isinstance(model, Counted) else model
    return inner if isinstance(inner, nn.Module) else None


class _Counting(TorchDispatchMode):
    """Counts operations, and the arithmetic of convolutions and matrix products, which have nearly all of it."""

    arithmetic, launches = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            self.launches += 1
            count = flop_registry.get(func._overloadpacket)
            if count is not None:
                self.arithmetic += count(*args, **(kwargs or {}), out_val=out)
        return out

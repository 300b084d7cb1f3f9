"""Attacks that a card replays from a recording (CUDA graphs), so that the host launches each of them at once.

Where launching operations takes longer than their arithmetic, an attack of hundreds of small kernels then costs little
more than the arithmetic. The recording is made by hand, since graphs made by ``torch.compile`` overwrite the results of
earlier passes within a loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks import shapes
from ima_dist.attacks.common import Network
from ima_dist.attacks.counting import Counted, Tally
from ima_dist.config.errors import ConfigError

# Of one training: the whole and the last batch of the steps, and of the margin pass. Others are launched as ever.
_MOST = 8
# Stands for a tensor among the arguments of a call.
_A_TENSOR = object()


class Recording:
    """One call with tensors of fixed shapes on a card, and what it returns when it is replayed with others.

    Like every CUDA graph it reads the same memory at each replay: of its arguments and of the network's parameters,
    which optimisers change in place.
    """

    def __init__(self, call: Callable[..., Any], given: Sequence[Tensor], pool: Any = None) -> None:
        """Record ``call(*given)``, which must not wait for the card and has been made before: nothing in it is lazy.

        Raises RuntimeError where torch cannot record it.
        """
        self._given = [value.clone() for value in given]
        self._graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads may copy data or look after NCCL at the same time.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = call(*self._given)

    def __call__(self, given: Sequence[Tensor]) -> Any:
        """The result for other tensors of the same shapes, which the next replay leaves alone."""
        for place, value in zip(self._given, given, strict=True):
            place.copy_(value)
        self._graph.replay()
        return _copied(self._result)


class Graphs:
    """Calls attacks, in training. Those of small networks on a card are recorded when a shape is met a second time."""

    def __init__(self) -> None:
        self._recorded: dict[Any, Recording] = {}
        self._met: set[Any] = set()
        self._pool: Any = None

    def __call__(self, attack: Callable[..., Any], model: Network, x: Tensor, *given: Any, **options: Any) -> Any:
        """``attack(model, x, …)``, whose result holds tensors and numbers; what ``model`` counts, it counts here, too.

        Raises ConfigError for a network that cannot be recorded.
        """
        if not x.is_cuda or not shapes.keeps_shape(model, x):
            return attack(model, x, *given, **options)
        network = model.network if isinstance(model, Counted) else model
        assert isinstance(network, nn.Module)
        everything = (x, *given, *options.values())
        tensors = [value for value in everything if isinstance(value, Tensor)]
        settings = tuple(_A_TENSOR if isinstance(value, Tensor) else value for value in everything)

        def call(*tensors: Tensor) -> tuple[Any, Tensor]:
            # A tally of its own, since Python that adds to one runs only while it is recorded.
            counted, left = Counted(network, Tally(x.device)), iter(tensors)
            values = [next(left) if value is _A_TENSOR else value for value in settings]
            named = dict(zip(options, values[1 + len(given) :], strict=True))
            return attack(counted, *values[: 1 + len(given)], **named), counted.tally.totals()

        key = (attack, network, tuple(_addresses(network)), tuple(options), settings, tuple(map(_form, tensors)))
        if key in self._recorded:
            result, counts = self._recorded[key](tensors)
        elif len(self._recorded) == _MOST:
            return attack(model, x, *given, **options)
        elif key in self._met:
            self._recorded[key] = self._record(call, tensors)
            result, counts = self._recorded[key](tensors)
        else:
            self._met.add(key)
            result, counts = on_another_stream(call, tensors)
        if isinstance(model, Counted):
            model.tally.add_totals(counts)
        return result

    def _record(self, call: Callable[..., Any], tensors: Sequence[Tensor]) -> Recording:
        # Only one is replayed at a time, and what it returns is copied, so all can use the same memory.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            return Recording(call, tensors, self._pool)
        except RuntimeError as e:
            raise ConfigError(
                f"--cuda-graphs: the card cannot record this network ({str(e).splitlines()[0]}). A network that looks "
                "at values in its forward pass cannot be recorded: leave the option out."
            ) from e


def on_another_stream(call: Callable[..., Any], given: Sequence[Tensor]) -> Any:
    """What torch demands before a recording: that the call has run, and not on the main stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = call(*given)
    torch.cuda.current_stream().wait_stream(stream)
    return _copied(result)


def _addresses(network: nn.Module) -> Iterator[int]:
    """Where a recording reads the network's parameters and buffers."""
    for value in (*network.parameters(), *network.buffers()):
        yield value.data_ptr()


def _form(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.dtype


def _copied(result: Any) -> Any:
    """The result of an attack with copies of its tensors: a tensor, a tuple or a dataclass of them and of numbers."""
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, tuple):
        return tuple(map(_copied, result))
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = {field.name: _copied(getattr(result, field.name)) for field in dataclasses.fields(result)}
        return dataclasses.replace(result, **fields)
    return result

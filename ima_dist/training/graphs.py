"""Attacks as CUDA graphs: the host launches hundreds of small kernels with one call.

This pays where launching operations takes longer than their arithmetic. The graphs are captured by hand, because those
of ``torch.compile`` overwrite the results of earlier passes in a loop.
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
from ima_dist.config.errors import ConfigError, first_line

# A training needs four: a whole batch and the last one, in its steps and in its margin pass.
_MOST = 8
# Stands for a tensor among the arguments of a call.
_A_TENSOR = object()


class Captured:
    """A captured call, which can be replayed with other tensors of the same shapes.

    Every replay reads the parameters of the network where they were; optimisers change them in place.
    """

    def __init__(self, call: Callable[..., Any], given: Sequence[Tensor], pool: Any = None) -> None:
        """Capture ``call(*given)``, which must not wait for the card. Run it once before, ``on_another_stream``.

        Raises RuntimeError if it cannot be captured.
        """
        self._given = [value.clone() for value in given]
        self._graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads may copy data or watch NCCL at the same time.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = call(*self._given)

    def __call__(self, given: Sequence[Tensor]) -> Any:
        """The result for ``given``; later replays do not overwrite it."""
        for place, value in zip(self._given, given, strict=True):
            place.copy_(value)
        self._graph.replay()
        return _copied(self._result)


class Graphs:
    """Runs the attacks of a training. Those that keep their shape are captured the second time a shape occurs.

    After ``_MOST`` shapes, further ones run as they are. What a network answers must depend on its input, parameters
    and buffers and on the tensors among its attributes: other Python values are those of the capture.
    """

    def __init__(self) -> None:
        self._captured: dict[Any, Captured] = {}
        self._met: set[Any] = set()
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, attack: Callable[..., Any], model: Network, x: Tensor, *given: Any, **options: Any) -> Any:
        """The result of ``attack(model, x, *given, **options)``: tensors and numbers, or a tuple or dataclass of them.

        Whatever ``model`` counts (``Counted``) is counted. Raises ConfigError for a network that cannot be captured.
        """
        if not x.is_cuda or not shapes.keeps_shape(model, x):
            return attack(model, x, *given, **options)
        network = model.network if isinstance(model, Counted) else model
        assert isinstance(network, nn.Module)
        everything = (x, *given, *options.values())
        tensors = [value for value in everything if isinstance(value, Tensor)]
        settings = tuple(_A_TENSOR if isinstance(value, Tensor) else value for value in everything)

        def call(*tensors: Tensor) -> tuple[Any, Tensor]:
            # Counts need a tally of their own inside the graph: no Python runs in a replay.
            counted, left = Counted(network, Tally(x.device)), iter(tensors)
            values = [next(left) if value is _A_TENSOR else value for value in settings]
            named = dict(zip(options, values[1 + len(given) :], strict=True))
            return attack(counted, *values[: 1 + len(given)], **named), counted.tally.totals()

        key = (attack, network, tuple(_addresses(network)), tuple(options), settings, tuple(map(_form, tensors)))
        if key in self._captured:
            result, counts = self._captured[key](tensors)
        elif len(self._captured) == _MOST:
            return attack(model, x, *given, **options)
        elif key in self._met:
            self._captured[key] = self._capture(call, tensors)
            result, counts = self._captured[key](tensors)
        else:
            self._met.add(key)
            self._stream = self._stream or torch.cuda.Stream()
            result, counts = on_another_stream(call, tensors, self._stream)
        if isinstance(model, Counted):
            model.tally.add_totals(counts)
        return result

    @property
    def used(self) -> bool:
        """Whether anything has been captured."""
        return bool(self._captured)

    def _capture(self, call: Callable[..., Any], tensors: Sequence[Tensor]) -> Captured:
        # Graphs may share memory, because only one runs at a time and results are copied.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            return Captured(call, tensors, self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:
            raise ConfigError(
                f"--cuda-graphs: this network cannot be captured ({first_line(e)}), probably because its forward pass "
                "waits for values. Leave the option out; on resuming, give --no-cuda-graphs."
            ) from e


def on_another_stream(call: Callable[..., Any], given: Sequence[Tensor], stream: Any) -> Any:
    """``call(*given)`` on a side stream, as torch requires before a capture."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = call(*given)
    torch.cuda.current_stream().wait_stream(stream)
    return _copied(result)


def _addresses(network: nn.Module) -> Iterator[int]:
    """Where the network's parameters, buffers and other tensors are in memory."""
    for module in network.modules():
        for values in (module._parameters, module._buffers, vars(module)):
            for value in values.values():
                if isinstance(value, Tensor):
                    yield value.data_ptr()


def _form(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.dtype


def _copied(result: Any) -> Any:
    """An attack's result with its tensors copied."""
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, tuple):
        return tuple(map(_copied, result))
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = {field.name: _copied(getattr(result, field.name)) for field in dataclasses.fields(result)}
        return dataclasses.replace(result, **fields)
    return result

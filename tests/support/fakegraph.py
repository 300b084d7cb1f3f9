"""CUDA graphs of the pretend card (``fakecard``): what was recorded is computed again, in the same memory.

As on a real card, recording computes nothing that may be used before a replay (results are made useless), a wait ends
it with an error, and Python runs only while it is recorded. Stricter than a real card, it refuses to record a change of
a tensor from outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_flatten


class FakeGraph:
    """In place of ``torch.cuda.CUDAGraph``."""

    def __init__(self, card: Any) -> None:
        self.card = card
        self.operators: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.made: set[int] = set()
        self.replays = 0

    def add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """One operator on CPU tensors, and what it returned."""
        given = {_memory(leaf) for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)}
        arguments = zip(func._schema.arguments, args, strict=False)
        written = [value for argument, value in arguments if argument.alias_info and argument.alias_info.is_write]
        if any(_memory(tensor) not in self.made for tensor in tree_flatten(written)[0]):
            raise AssertionError(f"{func} changes a tensor from outside of the graph")
        outputs = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, torch.Tensor)]
        fresh = [output for output in outputs if _memory(output) not in given]
        self.made |= {_memory(output) for output in fresh}
        if fresh or written:
            self.operators.append((func, args, kwargs, fresh))

    def spoil(self) -> None:
        """What a recording has computed is nothing until it is replayed."""
        for *_, fresh in self.operators:
            for output in fresh:
                output.fill_(float("nan") if output.is_floating_point() else 1)

    def replay(self) -> None:
        self.replays += 1
        self.card.kernels["replay of a graph", ""] += 1
        with torch.no_grad():
            for func, args, kwargs, fresh in self.operators:
                outputs = [leaf for leaf in tree_flatten(func(*args, **kwargs))[0] if isinstance(leaf, torch.Tensor)]
                if fresh:
                    for place, output in zip(fresh, outputs, strict=True):
                        place.copy_(output)


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def graphs(card: Any) -> Iterator[None]:
    """torch.cuda's calls for graphs and streams, for the pretend card inside the block."""

    @contextlib.contextmanager
    def graph(made: FakeGraph, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        assert card.graph is None
        waits = card.waits.total()
        card.graph = made
        try:
            yield
        finally:
            card.graph = None
        if card.waits.total() > waits:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        made.spoil()
        card.graphs.append(made)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    calls = {
        "CUDAGraph": lambda: FakeGraph(card),
        "graph": graph,
        "graph_pool_handle": object,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
    }
    with mock.patch.multiple(torch.cuda, **calls):
        yield

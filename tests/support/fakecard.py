"""A pretend CUDA card for machines without one: real numbers, CUDA's rules about devices, and a count of waits.

    with fake_card() as card:
        ...  # anything, on CUDA0
    card.waits    Counter of (kind, "ima_dist/attacks/bpgd.py:101")
    card.kernels  Counter of (operator, "ima_dist/attacks/bpgd.py:97")
    card.highest  most bytes in use at once; what torch reports can be reset
    card.graphs   CUDA graphs recorded (``fakegraph``); a replay counts as one kernel

A ``CardTensor`` claims to be on ``cuda:0`` and computes with an ordinary CPU tensor inside, so results equal the
CPU's bit for bit. Mixing it with a CPU tensor raises ``DeviceMix`` where CUDA would raise. Operations that make the
host wait for the card are counted by the line of ima_dist that asked for them.

To C++ the tensor is a "meta" one, since autograd then needs no CUDA streams; only Python sees a CUDA device. What
does not work: torch.autocast and GradScaler (torch switches them off without CUDA), and DistributedDataParallel.
torch's FakeTensorMode is no replacement: it has no values, and its backward pass needs a real card.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import ima_dist
from tests.support.fakegraph import FakeGraph, graphs

CUDA0 = torch.device("cuda", 0)
_PACKAGE = str(Path(ima_dist.__file__).resolve().parent)

# Operators whose result, or its size, the host has to wait for.
_WAITING = {
    "_local_scalar_dense": "scalar",
    "is_nonzero": "scalar",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_consecutive": "unique",
    "unique_dim": "unique",
    "bincount": "bincount",
    "equal": "equal",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPYING = {"_to_copy", "copy_"}
# Operators without a kernel: another view of the same memory, or memory that is only allocated.
_WITHOUT_KERNEL = {
    "detach", "alias", "lift", "lift_fresh", "view", "_unsafe_view", "_reshape_alias", "is_same_size", "empty",
    "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "_local_scalar_dense",
}  # fmt: skip
# Elementwise operators accept a zero-dimensional CPU tensor beside CUDA tensors; these do not.
_STRICT = {
    "cat", "stack", "index_select", "index_add_", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_",
    "mm", "addmm", "bmm", "convolution", "embedding", "native_layer_norm",
}  # fmt: skip


class DeviceMix(RuntimeError):
    """Operands on two devices, which CUDA refuses."""


class CardTensor(torch.Tensor):
    """A tensor that says it is on ``cuda:0``; ``elem`` is the CPU tensor that holds its values."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> CardTensor:
        layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset(), "dtype": elem.dtype}
        outer = torch.Tensor._make_wrapper_subclass(cls, elem.shape, device="meta", requires_grad=False, **layout)
        outer.elem = elem
        if Card.active is not None:
            Card.active.hold(elem.untyped_storage())
        return outer

    device = property(lambda self: CUDA0)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"CardTensor({self.elem!r})"

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to("meta" if device is None else device)

    # safetensors looks at storages, to find tied weights and to write files.
    def untyped_storage(self) -> torch.UntypedStorage:
        return self.elem.untyped_storage()

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    # An assignment to ``data`` reaches no dispatcher: the inner tensor has to be exchanged here.
    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, CardTensor):
            raise DeviceMix("data of a CUDA tensor set to a CPU tensor")
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.elem = value.elem

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert Card.active is not None, f"{func} on a card that is no longer there"
        return Card.active.run(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """The card's dispatcher and counters; at most one is active at a time. Enter it by ``fake_card``."""

    active: ClassVar[Card | None] = None

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory, self.held = memory, 0
        self._storages: set[int] = set()
        self.peak = self.highest = 0
        #: The graph that is being recorded, and those that were.
        self.graph: FakeGraph | None = None
        self.graphs: list[FakeGraph] = []
        self.reset()

    def hold(self, storage: torch.UntypedStorage) -> None:
        """Count a storage's bytes until nothing refers to it."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        self.highest = max(self.highest, self.held)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.held -= size

    def reset_peak(self, device: Any = None) -> None:
        self.peak = self.held

    def reset(self) -> None:
        """Set both counters to zero."""
        self.waits: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Card:
        assert Card.active is None, "there is only one card"
        Card.active = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Card.active = None
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operator: refuse it or count it, compute it on the CPU, wrap what CUDA would leave on the card."""
        leaves, spec = tree_flatten((args, kwargs))
        card = [leaf for leaf in leaves if isinstance(leaf, CardTensor)]
        host = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, CardTensor)]
        wanted = kwargs.get("device")
        if not card and not _on_card(wanted):
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if name == "copy_":
            onto_card = isinstance(args[0], CardTensor)
        else:
            onto_card = bool(card) if wanted is None else _on_card(wanted)
        if name in _COPYING:
            self._count_copy(name, args, kwargs, onto_card)
        else:
            if card and host:
                self._check_mix(func, name, args, host)
            self._count_waits(name, args, kwargs)
        if onto_card and name not in _WITHOUT_KERNEL and not _is_view(func):
            self.kernels[name, _line()] += 1

        inner_args, inner_kwargs = tree_unflatten([_inner(leaf) for leaf in leaves], spec)
        inner_kwargs |= {key: False for key in ("non_blocking", "pin_memory") if key in inner_kwargs}
        out = func(*inner_args, **inner_kwargs)
        if self.graph is not None:
            self.graph.add(func, inner_args, inner_kwargs, out)
        if not onto_card:
            return out
        out = tree_map(lambda leaf: CardTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
        if not card or (name == "_to_copy" and wanted is not None):
            return out
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _count_copy(self, name: str, args: Any, kwargs: Any, to_card: bool) -> None:
        source = args[1] if name == "copy_" else args[0]
        if isinstance(source, CardTensor) == to_card:
            return
        if not to_card:
            self.waits["copy to the host", _line()] += 1
        elif not (args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking")):
            self.waits["blocking copy to the card", _line()] += 1

    def _check_mix(self, func: Any, name: str, args: Any, host: list[torch.Tensor]) -> None:
        """Raise DeviceMix for operands that CUDA refuses beside a CUDA tensor."""
        if name in _INDEXING and isinstance(args[0], CardTensor):
            # CUDA copies indices from the host; values must be on the card, or have no dimensions.
            if not any(_on_host(value) and value.ndim for value in args[2:3]):
                self.waits["index from the host", _line()] += sum(map(_on_host, args[1]))
                return
        elif name not in _STRICT and all(tensor.ndim == 0 for tensor in host):
            written_to = func._schema.is_mutable and _on_host(args[0])
            if not written_to:
                return
        shapes = [tuple(tensor.shape) for tensor in host]
        raise DeviceMix(
            f"Expected all tensors to be on the same device: {func} at {_line()}: CPU tensor of shape {shapes} "
            "beside cuda:0"
        )

    def _count_waits(self, name: str, args: Any, kwargs: Any) -> None:
        if name in _WAITING:
            self.waits[_WAITING[name], _line()] += 1
        elif name == "repeat_interleave" and len(args) <= 2 and kwargs.get("output_size") is None:
            self.waits["repeat_interleave", _line()] += 1
        elif name in _INDEXING:
            masks = [i for i in args[1] if isinstance(i, CardTensor) and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                self.waits["boolean index", _line()] += len(masks)


class _Translated(TorchFunctionMode):
    """Hands "cuda" to torch as "meta", for which C++ loads no driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.pin_memory:
            return args[0].clone()
        if func is torch.Tensor.cuda:
            return args[0].to("meta")
        if not any(_names_card(value) for value in (*args[1:], *kwargs.values())):
            return func(*args, **kwargs)
        args = (*args[:1], *map(_as_meta, args[1:]))
        kwargs = {key: _as_meta(value) for key, value in kwargs.items()}
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            # Made from Python numbers, these would be "meta" tensors without values.
            device = kwargs.pop("device")
            made = func(*args, **kwargs)
            return made if isinstance(made, CardTensor) else made.to(device)
        return func(*args, **kwargs)


@contextlib.contextmanager
def fake_card(memory: int = 80 << 30) -> Iterator[Card]:
    """The card with ``memory`` bytes, and the patches that code outside torch's dispatcher needs."""
    optimizer = importlib.import_module("torch.optim.optimizer")
    load_file, fork_rng = safetensors.torch.load_file, torch.random.fork_rng

    def load_onto_card(filename: Any, device: Any = "cpu", **options: Any) -> dict[str, torch.Tensor]:
        # safetensors' Rust code opens CUDA by itself.
        return {key: value.to(device) for key, value in load_file(filename, "cpu", **options).items()}

    def fork_host_rng(*_: Any, **__: Any) -> Any:
        # The real one would ask the driver for the state of the card's generator.
        return fork_rng([])

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(safetensors.torch, "load_file", load_onto_card))
        stack.enter_context(mock.patch.object(torch.random, "fork_rng", fork_host_rng))
        # torch uses its "foreach" kernels, as on a real card, for the types in these lists only.
        for module in (optimizer, _foreach_utils):
            types = [*module._foreach_supported_types, CardTensor]
            stack.enter_context(mock.patch.object(module, "_foreach_supported_types", types))
        stack.enter_context(_Translated())
        card = Card(memory)
        statistics = {
            "memory_allocated": lambda device=None: card.held,
            "memory_reserved": lambda device=None: card.held,
            "max_memory_allocated": lambda device=None: card.peak,
            "reset_peak_memory_stats": card.reset_peak,
            "mem_get_info": lambda device=None: (card.memory - card.held, card.memory),
        }
        stack.enter_context(mock.patch.multiple(torch.cuda, **statistics))
        stack.enter_context(graphs(card))
        yield stack.enter_context(card)


def _on_card(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "meta")


def _on_host(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, CardTensor)


def _names_card(value: Any) -> bool:
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return isinstance(value, torch.device) and value.type == "cuda"


def _as_meta(value: Any) -> Any:
    return torch.device("meta") if _names_card(value) else value


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, CardTensor):
        return leaf.elem
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _line() -> str:
    """The innermost line of ima_dist on the stack, as "ima_dist/attacks/bpgd.py:101"; "?" if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return f"ima_dist{name.removeprefix(_PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"

"""The collective operations that the project uses. Without a process group there is one worker."""

import contextlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ima_dist.config.errors import first_line

_T = TypeVar("_T")
#: Note on an exception that worker 0 has raised and the others repeat.
REPEATED = "raised by worker 0"
Group = Any  # torch.distributed.ProcessGroup | None; None is the default group


class Interrupted(Exception):
    """The workers were asked to stop and have agreed to; everything done so far is saved. Exit status 75."""


class GroupClosed(RuntimeError):
    """The process group was closed while this process was one of its workers and at work."""


# The number of workers that ``in_step`` has found.
_in_step = 1


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """While this lasts, the process is one of all workers that it has at the beginning, or every use fails.

    When a worker has died, Ray closes the process group of the others, which are at work in another thread. Each would
    go on as the only worker, and save its part of the margins or of the results as the whole.
    """
    global _in_step
    before, _in_step = _in_step, world_size()
    try:
        yield
    finally:
        _in_step = before


def is_closed() -> bool:
    """Whether the workers of ``in_step`` have lost their process group."""
    return _in_step > 1 and not (dist.is_available() and dist.is_initialized())


def is_distributed() -> bool:
    """Whether there is a process group. Raises GroupClosed if there was one when ``in_step`` began."""
    if is_closed():
        raise GroupClosed("the process group was closed, because another worker has ended")
    return dist.is_available() and dist.is_initialized()


def rank(group: Group = None) -> int:
    return dist.get_rank(group) if is_distributed() else 0


def world_size(group: Group = None) -> int:
    return dist.get_world_size(group) if is_distributed() else 1


def all_reduce(tensor: Tensor, op: str = "sum", group: Group = None) -> Tensor:
    """Sum or max over the workers, in place; returns the tensor."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, group=group)
    return tensor


def average_(tensors: list[Tensor], weight: float = 1.0, group: Group = None) -> None:
    """Replace tensors of one type and device by their mean over the workers, in one collective.

    weight: this worker's, such as its number of samples; not all workers' may be 0.
    """
    if not tensors or world_size(group) == 1:
        return
    # The weights travel with the values, so that no worker has to know those of the others.
    *sums, total = all_reduce(
        torch.cat([*(t.flatten() * weight for t in tensors), tensors[0].new_full((1,), weight)]), group=group
    ).split([*(t.numel() for t in tensors), 1])
    for tensor, part in zip(tensors, sums, strict=True):
        tensor.copy_((part / total).view_as(tensor))


def gather_objects(value: Any, group: Group = None) -> list[Any]:
    """Every worker's (small, picklable) value, by rank, on every worker."""
    if world_size(group) == 1:
        return [value]
    out: list[Any] = [None] * world_size(group)
    dist.all_gather_object(out, value, group=group)
    is_distributed()  # what arrives while the group is being closed may be anything
    return out


def gather_tensors(tensor: Tensor, sizes: list[int], group: Group = None) -> list[Tensor]:
    """Every worker's vector, by rank, on every worker; ``sizes`` are their lengths, which differ by at most 1."""
    if world_size(group) == 1:
        return [tensor]
    # Every backend can gather vectors of equal length.
    padded = torch.cat([tensor, tensor.new_zeros(max(sizes) - len(tensor))])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def exchange(columns: list[Tensor], sizes: Tensor, group: Group = None) -> tuple[list[Tensor], Tensor]:
    """Send the first ``sizes[0]`` rows to worker 0, the next ``sizes[1]`` to worker 1, …

    columns: tensors with the same number of rows. sizes: (world,) int64. Returns the rows received, in the order of
    the senders, and how many rows each of them sent, (world,) int64.
    """
    arriving = torch.empty_like(sizes)
    dist.all_to_all_single(arriving, sizes.contiguous(), group=group)
    outgoing, incoming = sizes.tolist(), arriving.tolist()
    out = []
    for column in columns:
        kind = column.dtype
        # gloo does not send bool.
        sent = column.to(torch.uint8) if kind == torch.bool else column.contiguous()
        got = sent.new_empty(sum(incoming))
        dist.all_to_all_single(got, sent, incoming, outgoing, group=group)
        out.append(got.to(kind))
    return out, arriving


def share_object(value: Any, group: Group = None) -> Any:
    """Worker 0's value, on every worker."""
    return gather_objects(value if rank(group) == 0 else None, group)[0]


def together(act: Callable[[], _T], group: Group = None) -> _T:
    """Worker 0 calls ``act``; all workers return its value, or raise the exception that it raised."""
    if world_size(group) == 1:
        return act()
    value: Any = None
    raised: Exception | None = None
    if rank(group) == 0:
        try:
            value = act()
        except Exception as error:
            raised = _portable(error)
    value, raised = share_object((value, raised), group)
    if raised is not None:
        if rank(group) != 0:
            raised.add_note(REPEATED)
        raise raised
    return cast(_T, value)


def _portable(error: Exception) -> Exception:
    """The exception, or its text if it cannot be sent to other workers: they would never hear of it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(first_line(error))
    return error


def barrier(group: Group = None) -> None:
    if world_size(group) > 1:
        # An object gather and not dist.barrier(): NCCL's barrier guesses the device.
        gather_objects(None, group)


def block(total: int, part: int, parts: int) -> tuple[int, int]:
    """First and one-past-last of the ``part``-th of ``parts`` contiguous blocks of ``range(total)``."""
    return total * part // parts, total * (part + 1) // parts


def share_of_batch(indices: Tensor, group: Group = None) -> Tensor:
    """This worker's contiguous part of a global batch's index tensor (B,).

    Sizes differ by at most 1 and never grow with the rank: if there are fewer samples than workers, the last workers
    get none.
    """
    return indices.tensor_split(world_size(group))[rank(group)]

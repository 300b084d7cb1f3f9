"""Where samples are while they are used: on the device, in the host's memory, or on the disk (``--data.place``)."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ima_dist.config.errors import ConfigError
from ima_dist.data.free_memory import free_memory
from ima_dist.data.pipeline import Streamed, in_memory
from ima_dist.data.types import Box, Resident, Samples, Split, stays_in_place

Place = Literal["device", "host", "disk"]
# ``auto`` takes at most this share of what is free: the network, its attacks and the other splits need the rest.
_SHARE = 0.5
# Sets below this are not worth a line.
_SAID = 1 << 28


@dataclass(frozen=True)
class Placed:
    """samples: one for each split. sentence: where they are, for the user; None if there is nothing to say."""

    samples: tuple[Samples, ...]
    sentence: str | None


def place(splits: Sequence[Split], asked: str, device: torch.device, dtype: torch.dtype, box: Box) -> Placed:
    """Put the splits where ``--data.place`` (``asked``) says; "auto" decides by what is free, before anything is read.

    Raises ConfigError if they do not fit where the user wants them, and Unreadable.
    """
    # Ray says how many workers share this machine's memory.
    workers = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    host = free_memory() // workers
    room = host if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    where, sentence = choose(splits, asked, device, dtype, room, host, workers)
    return Placed(tuple(_placed(split, where, device, dtype, box) for split in splits), sentence)


def choose(
    splits: Sequence[Split], asked: str, device: torch.device, dtype: torch.dtype, room: int, host: int, workers: int
) -> tuple[Place, str | None]:
    """The place, and the sentence of ``Placed``.

    room: bytes free on the device. host: bytes of the host's memory that each of its ``workers`` may use.
    Raises ConfigError if the samples do not fit where the user wants them.
    """
    on_card = device.type != "cpu"
    # On a CPU, what is in place already needs nothing more.
    for_device = sum(_on_device(split, dtype) for split in splits if not stays_in_place(split, device, dtype))
    for_host = sum(len(split) * split.bytes_each for split in splits if split.on_disk)
    where: Place
    if asked == "auto":
        where = _fitting(for_device, room, for_host, host, on_card, all(not split.on_disk for split in splits))
    else:
        where = asked  # type: ignore[assignment]
        need, left = (for_device, room) if where == "device" else (for_host, host) if where == "host" else (0, 0)
        if need > left:
            raise ConfigError(
                f"--data.place {where} needs {_size(need)} of memory, and {_size(left)} are free{_each(workers)}: use "
                "--data.place auto or disk, or fewer samples."
            )
    total = sum(len(split) * split.bytes_each for split in splits)
    said = None
    if total >= _SAID or where != "device":
        said = f"Data of {_size(total)}: {_words(where, on_card)}{_each(workers)}."
    advice = next((text for split in splits if (text := getattr(split.stored, "advice", ""))), "")
    if said and advice and where == "disk":
        said += f" {advice}"
    return where, said


def _fitting(for_device: int, room: int, for_host: int, host: int, on_card: bool, loaded: bool) -> Place:
    if for_device <= _SHARE * room:
        return "device"
    # On a CPU both are the same memory; what is loaded already stays where it is.
    return "host" if loaded or (on_card and for_host <= _SHARE * host) else "disk"


def _placed(split: Split, where: Place, device: torch.device, dtype: torch.dtype, box: Box) -> Samples:
    if where == "device":
        # Encoded samples are decoded by several threads.
        loaded = split if isinstance(split.stored, torch.Tensor) else in_memory(split)
        return Resident(loaded, device, dtype, box)
    return Streamed(in_memory(split) if where == "host" and split.on_disk else split, device, dtype, box)


def _on_device(split: Split, dtype: torch.dtype) -> int:
    return len(split) * math.prod(split.shape) * (1 if split.dtype == torch.uint8 else dtype.itemsize)


def _words(where: Place, on_card: bool) -> str:
    if where == "device":
        return "held in the card's memory" if on_card else "held in memory"
    return "in the host's memory, copied batch by batch" if where == "host" else "read from the disk batch by batch"


def _each(workers: int) -> str:
    return f" for each of the node's {workers} workers" if workers > 1 else ""


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"

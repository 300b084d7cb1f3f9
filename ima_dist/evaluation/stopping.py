"""Ending an attack between two forward passes."""

import contextlib
import time
from collections.abc import Callable, Iterator

from torch import nn

# Seconds between two calls of ``should_stop``, each of which asks the file server if storage is shared.
_LOOK_EVERY = 0.5


class Stop(Exception):
    """This worker was asked to stop; the others may not have noticed yet."""


@contextlib.contextmanager
def stoppable(network: nn.Module, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Raise Stop from a forward pass, and so out of every attack, soon after ``should_stop()`` becomes true."""
    looked = time.monotonic()

    def look(module: nn.Module, arguments: object) -> None:
        nonlocal looked
        if time.monotonic() - looked >= _LOOK_EVERY:
            if should_stop():
                raise Stop
            looked = time.monotonic()

    if should_stop():
        raise Stop
    handle = network.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()

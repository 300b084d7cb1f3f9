"""Doing something every few seconds beside the work, in a thread. Needs no torch."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def polling(act: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Call ``act`` every ``seconds`` until the block ends; a call that has begun by then is waited for.

    ``act`` handles its own exceptions: one that it raises ends the thread.
    """
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(seconds):
            act()

    thread = threading.Thread(target=follow, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

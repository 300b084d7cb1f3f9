"""How often the host waits for the card in an epoch, by line, as CUDA's sync debug mode sees it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.check import Check, Skip
from benchmarks.gpu.runs import prepared

_CHECKOUT = str(Path(__file__).resolve().parents[2])
_STEPS, _QUICK_STEPS = 10, 2
#: The beginning of torch's warning.
SYNCHRONIZING = "called a synchronizing CUDA operation"


def run(check: Check) -> None:
    if not check.on_card:
        raise Skip("needs a card")
    for preset, source in (("moons", "moons"), ("fashion_mnist", "fashion")):
        with check.attempt("waits", preset=preset):
            check.need_time()
            options: dict[str, Any] = {"epochs": 1, "delta_eps": 0.1, "data.source": f"benchmarks.gpu.data:{source}"}
            steps, batch = (_QUICK_STEPS, 10) if check.quick else (_STEPS, 128)
            options |= {"data.subset": steps * batch, "batch_size": batch}
            if check.quick:
                options |= {"attack.steps": 2, "attack.bisections": 2}
            with prepared(check, preset, options, check.device) as training, counted_waits() as lines:
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    training.fit()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            check.say("waits", preset=preset, steps=steps, in_the_epoch=lines.total(), lines=lines.most_common(20))


@contextlib.contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Counts torch's warnings of waits by the innermost line of this checkout that led to them."""
    lines: Counter[str] = Counter()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def count(message: Warning | str, *rest: Any, **options: Any) -> None:
            if SYNCHRONIZING in str(message):
                # The warning itself often names a line of torch.
                lines[_line()] += 1
            else:
                shown(message, *rest, **options)

        warnings.simplefilter("always")
        warnings.showwarning = count
        yield lines


def _line() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_CHECKOUT) and name != __file__:
            return f"{Path(name).relative_to(_CHECKOUT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"

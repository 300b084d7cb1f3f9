"""What the parts of the check share: the device, the time that is left, and how findings are written."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_OURS = ("ima_dist", "benchmarks")


class Skip(Exception):
    """Something cannot be done here; the message says why."""


class Check:
    """One run of the check.

    Attributes:
        device: the card, or the CPU on a machine without one.
        quick: small sizes, to see that everything runs; times mean nothing then.
        failed: names of the parts in which something failed.
        skipped: names of the parts of which something was skipped.
    """

    def __init__(self, device: torch.device, quick: bool, seconds: float) -> None:
        self.device, self.quick = device, quick
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self._began = time.monotonic()
        self._end = self._deadline = self._began + seconds

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.on_card:
            import torch

            torch.cuda.synchronize(self.device)

    def say(self, part: str, **found: Any) -> None:
        """Write one finding as a line of JSON, at once, so that a run that is cut off still tells something."""
        at = round(time.monotonic() - self._began, 1)
        print(json.dumps({"part": part, "at": at, **found}, default=str), flush=True)

    def judge(self, part: str, passed: bool, **found: Any) -> None:
        """Write a finding that is right or wrong."""
        if not passed:
            self._note(self.failed, part)
        self.say(part, passed=passed, **found)

    def over(self) -> bool:
        """Whether the present part has used up its time."""
        return time.monotonic() >= self._deadline

    def need_time(self) -> None:
        """Raise Skip if the present part has used up its time."""
        if self.over():
            raise Skip("no time left")

    @contextlib.contextmanager
    def attempt(self, part: str, **which: Any) -> Iterator[None]:
        """Do one thing; if it cannot be done or fails, write why, and go on behind the ``with`` block."""
        try:
            yield
        except Exception as error:
            missing = missing_package(error)
            if missing is None and not isinstance(error, Skip):
                self._note(self.failed, part)
                self.say(part, **which, failed=traceback.format_exc(limit=-4))
                return
            self._note(self.skipped, part)
            reason = str(error) if missing is None else f"needs {missing}, which is not installed"
            self.say(part, **which, skipped=reason)

    @contextlib.contextmanager
    def share_of_time(self, last: bool) -> Iterator[None]:
        """A part may use half of the time that is left, the last part all of it."""
        now = time.monotonic()
        self._deadline = self._end if last else now + (self._end - now) / 2
        yield
        self._deadline = self._end

    @staticmethod
    def _note(names: list[str], part: str) -> None:
        if part not in names:
            names.append(part)


def missing_package(error: BaseException | None) -> str | None:
    """The package whose absence led to ``error``; None if that was not the reason."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            return None if package in _OURS else package
        error = error.__cause__
    return None

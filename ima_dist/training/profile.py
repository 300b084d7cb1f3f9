"""``--profile STEPS``: what takes the time in training steps, by torch's profiler."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from torch.autograd import DeviceType
from torch.profiler import profile, schedule

from ima_dist.core import distributed
from ima_dist.rundir.directory import RunDir

# Steps that are not recorded: the first ones allocate memory and choose kernels.
_BEFORE = 3
_ROWS = 40


class StepProfiler:
    """Records ``steps`` training steps of worker 0 once per start; nothing for None.

    Writes ``profile/trace.json.gz``, for https://ui.perfetto.dev or chrome://tracing, and ``profile/table.txt`` with
    the operations that took most of the time.
    """

    def __init__(self, run: RunDir, steps: int | None) -> None:
        self._run, self._left = run, 0
        if steps is not None and distributed.rank() == 0:
            self._left = _BEFORE + steps
            when = schedule(wait=_BEFORE - 1, warmup=1, active=steps, repeat=1)
            self._profile = profile(schedule=when, on_trace_ready=self._write)
            self._profile.start()

    def step(self) -> None:
        """Call it after every step."""
        if self._left:
            self._left -= 1
            if self._left:
                self._profile.step()
            else:
                self._profile.stop()

    def close(self) -> None:
        """Write what there is if the training has fewer steps."""
        if self._left:
            self._left = 0
            self._profile.stop()

    def _write(self, found: profile) -> None:
        rows = found.key_averages()
        on_card = any(row.device_type == DeviceType.CUDA for row in rows)
        table = rows.table(f"self_{'device' if on_card else 'cpu'}_time_total", row_limit=_ROWS)
        with tempfile.TemporaryDirectory() as place:
            trace = Path(place, "trace.json.gz")
            found.export_chrome_trace(str(trace))
            for name, content in (("trace.json.gz", trace.read_bytes()), ("table.txt", table.encode())):
                self._run.for_display(partial(self._keep, name, content))

    def _keep(self, name: str, content: bytes) -> None:
        with self._run.replacing(self._run.profile_dir / name) as file:
            file.write(content)

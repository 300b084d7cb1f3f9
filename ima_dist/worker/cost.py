"""What a task costs: time, energy, memory, and waiting, of all workers together, summed over the starts of a run.

A worker measures its own process from the beginning of the task. Energy is that of whole cards and processors, whoever
else uses them: cards by NVML (Volta and later), processors by RAPL, which usually only root may read.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ima_dist.core import distributed
from ima_dist.data.pipeline import seconds_waited
from ima_dist.rundir.directory import RunDir

if TYPE_CHECKING:
    import torch

RAPL = Path("/sys/class/powercap")
# Counters of energy may start again from zero several times per hour.
_EVERY = 15.0  # seconds
_SUMS = ("worker_seconds", "gpu_seconds", "cpu_seconds", "waiting_seconds", "gpu_joules", "cpu_joules", "gpu_busy")
_PEAKS = ("peak_device_bytes", "peak_host_bytes")


@contextlib.contextmanager
def counted(run: RunDir, device: torch.device) -> Iterator[None]:
    """Add what the block costs to ``cost`` in summary.json if it ends normally or by Interrupted. Collective.

    Entries: starts; wall_seconds; sums over the workers: worker_seconds, gpu_seconds (on cards), cpu_seconds,
    waiting_seconds (for samples that are read from the disk), gpu_joules and cpu_joules (null where they cannot be
    read), gpu_busy (seconds in which a card was at work); the largest of any worker: peak_device_bytes,
    peak_host_bytes.
    """
    meter = _Meter(device)
    try:
        yield
    except distributed.Interrupted:
        _add(run, meter.end())
        raise
    finally:
        meter.stop()
    _add(run, meter.end())


def _add(run: RunDir, mine: dict[str, float | None]) -> None:
    workers = distributed.gather_objects(mine)
    if distributed.rank() == 0:
        summary = run.summary()
        before = summary.get("cost", {})
        cost: dict[str, Any] = {"starts": before.get("starts", 0) + 1}
        longest = max(worker["worker_seconds"] for worker in workers)
        cost["wall_seconds"] = before.get("wall_seconds", 0.0) + longest
        cost |= {name: _sum([before.get(name), *(worker[name] for worker in workers)]) for name in _SUMS}
        cost |= {name: max(before.get(name) or 0, *(worker[name] or 0 for worker in workers)) for name in _PEAKS}
        with contextlib.suppress(OSError):  # a full disk must not turn a finished run into a failed one
            run.write_json(run.summary_path, {**summary, "cost": cost})


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


class _Meter:
    """One worker's measurements, from its construction to ``end``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._began, self._cpu, self._waited = time.perf_counter(), _cpu_seconds(), seconds_waited()
        self._card = _Card(device) if device.type == "cuda" else None
        # One worker of a node reads what belongs to all of it.
        self._packages = [_Package(path) for path in _packages()] if _local_rank() == 0 else []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cost", daemon=True)
        if self._card or self._packages:
            self._thread.start()

    def _follow(self) -> None:
        while not self._ended.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        for package in self._packages:
            package.look()
        if self._card:
            self._card.look()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def end(self) -> dict[str, float | None]:
        self._look()
        seconds = time.perf_counter() - self._began
        joules = [package.joules for package in self._packages]
        card = self._card
        return {
            "worker_seconds": seconds,
            "gpu_seconds": seconds if card else 0.0,
            "cpu_seconds": _cpu_seconds() - self._cpu,
            "waiting_seconds": seconds_waited() - self._waited,
            "gpu_joules": card.joules if card else None,
            "cpu_joules": sum(joules) if joules else None,
            "gpu_busy": card.busy * seconds if card and card.busy is not None else None,
            "peak_device_bytes": card.peak_bytes if card else 0,
            "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK") or 0)


def _packages() -> list[Path]:
    """The processors' counters of energy that can be read; their parts, such as the memory's, are not among them."""
    found = sorted(RAPL.glob("intel-rapl:[0-9]*")) if RAPL.is_dir() else []
    return [path for path in found if path.name.count(":") == 1 and _number(path / "energy_uj") is not None]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


class _Package:
    """A processor's counter of energy, which starts again from zero at ``max_energy_range_uj``."""

    def __init__(self, path: Path) -> None:
        self._file, self._range = path / "energy_uj", _number(path / "max_energy_range_uj") or 0
        self._last, self.joules = _number(self._file) or 0, 0.0

    def look(self) -> None:
        now = _number(self._file)
        if now is not None:
            self.joules += (now - self._last + (self._range if now < self._last else 0)) / 1e6
            self._last = now


class _Card:
    """joules: since the beginning, or None. busy: mean share of the time in which it was at work, or None."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device, self._torch = device, torch
        self._looks: list[float] = []
        torch.cuda.reset_peak_memory_stats(device)
        self._handle: Any = None
        with contextlib.suppress(Exception):  # pynvml is missing, or knows no such card
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self._first = self._energy()

    def _energy(self) -> float | None:
        if self._handle is not None:
            with contextlib.suppress(Exception):
                return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3
        return None

    def look(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(Exception):
                self._looks.append(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)

    @property
    def joules(self) -> float | None:
        now = self._energy()
        return None if now is None or self._first is None else now - self._first

    @property
    def busy(self) -> float | None:
        return sum(self._looks) / len(self._looks) if self._looks else None

    @property
    def peak_bytes(self) -> int:
        return int(self._torch.cuda.max_memory_allocated(self._device))

"""Worker 0's progress.json, and when all workers pause together to report and to check for a stop."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.rundir.directory import RunDir
from ima_dist.training.state import Position

# Seconds between two reports. Each costs two small all-reduces and a sync.
LOOK_EVERY = 1.0


class Reporter:
    """Decides when to report, by a count of steps that all workers share, and when to stop.

    A worker that stopped on its own would leave the others waiting in a collective, so worker 0 asks
    ``should_stop`` and all workers learn the answer in the same step. ``notes`` are sentences for the user.
    """

    def __init__(
        self,
        run: RunDir,
        config: Config,
        steps: int,
        samples: int,
        should_stop: Callable[[], bool],
        notes: Sequence[str] = (),
    ) -> None:
        self.run, self.config, self.steps, self.samples = run, config, steps, samples
        self.should_stop, self.notes = should_stop, list(notes)
        self.interval = 4
        self.count = 0
        self.since = self.started = time.monotonic()
        self.start_samples: float | None = None

    def note(self, sentence: str) -> None:
        """A sentence for the user, told once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def due(self) -> bool:
        """Count one step; True if it is time to report."""
        self.count += 1
        return self.count >= self.interval

    def stop_agreed(self, device: torch.device) -> bool:
        """True if worker 0 was asked to stop. Also agrees on the number of steps until the next report. Collective."""
        elapsed = max(time.monotonic() - self.since, 1e-6)
        wanted = int(self.count * LOOK_EVERY / elapsed) if self.count else self.interval
        message = torch.zeros(2, dtype=torch.int64, device=device)
        if distributed.rank() == 0:
            message[0] = int(self.should_stop())
            message[1] = max(1, min(wanted, 4 * self.interval))
        stop, self.interval = distributed.all_reduce(message, op="max").tolist()
        self.count, self.since = 0, time.monotonic()
        return bool(stop)

    def write(
        self, stage: str, position: Position, totals: dict[str, float], last_epoch: dict[str, Any], warnings: list[str]
    ) -> None:
        """Rewrite progress.json (worker 0)."""
        total = self.config.epochs * self.samples
        done = position.epoch * self.samples + min(position.step * self.config.batch_size, self.samples)
        if self.start_samples is None:
            self.start_samples = done
        elapsed = time.monotonic() - self.started
        rate = (done - self.start_samples) / max(elapsed, 1e-9)
        seen = totals["seen"]
        finished = position.step == 0 and position.epoch > 0
        state = {
            "stage": stage,
            "epoch": position.epoch if finished else position.epoch + 1,
            "epochs": self.config.epochs,
            "step": self.steps if finished else position.step,
            "steps": self.steps,
            "samples_done": done,
            "samples_total": total,
            "samples_per_second": rate or None,
            "workers": distributed.world_size(),
            "loss": totals["loss"] / seen if seen else last_epoch.get("train_loss"),
            "clean_accuracy": totals["correct"] / seen if seen else last_epoch.get("train_accuracy"),
            "val_accuracy": last_epoch.get("val_accuracy"),
            "margin_mean": last_epoch.get("margin_mean"),
            "share_at_max": last_epoch.get("share_at_max"),
            "seconds_left": (total - done) / rate if rate > 0 else None,
            "notes": self.notes,
            "warnings": [*warnings, *self.run.dropped],
            "updated": time.time(),
        }
        self.run.write_progress(state)

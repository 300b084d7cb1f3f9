"""While a run goes on: its rows in the data set, TensorBoard's event files, and MLflow if it is asked for.

All of it follows what the workers write into the run directory, from the process that started them, and none of it
may disturb the run: what cannot be written is said once, as a warning.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.values import option_values
from ima_dist.rundir.curves import attack_rows, format_noise
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json, read_parquet, sentence, write_json
from ima_dist.rundir.lease import LeaseLost
from ima_dist.tracking import tables

_POLL_SECONDS = 2.0
_LISTS = ("epoch", "margin_quantiles", "margin_histogram")


class Recorder:
    """Context manager that follows a run; on leaving, the last state is recorded.

    ``usual``: the results directory of runs that are given no other (see ``tables.root_of``). A run in no results
    directory leaves no data set and no event files.
    """

    def __init__(self, run: RunDir, usual: Path) -> None:
        self._run = run
        self._root = tables.root_of(run, usual)
        self._stamp = ""
        self._warned: set[str] = set()
        self._sinks: list[_Sink] = []
        if self._root is not None:
            self._sinks.append(_TensorBoard(self._root, run))
        if os.environ.get("MLFLOW_TRACKING_URI"):
            self._sinks.append(_MLflow(run))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is not None and issubclass(kind, LeaseLost):
            return  # another process records it
        self._record()
        for sink in self._sinks:
            self._guarded(sink.end)

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._record()

    def _record(self) -> None:
        stamp = tables.stamp_of(self._run)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        for sink in self._sinks:
            self._guarded(lambda sink=sink: sink.epochs(self._run.read_history()))  # type: ignore[misc]
        root = self._root
        if root is not None:
            self._guarded(lambda: tables.write_run(root, self._run))

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        # MLflow alone raises dozens of kinds, and none is worth a training.
        except Exception as error:
            text = sentence(error) if isinstance(error, OSError | ConfigError) else first_line(error)
            if text not in self._warned:
                self._warned.add(text)
                print(f"warning: not recorded: {text}", file=sys.stderr, flush=True)


def epoch_values(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row of history.parquet."""
    return {name: float(value) for name, value in row.items() if value is not None and name not in _LISTS}


class _Sink(Protocol):
    def epochs(self, history: list[dict[str, Any]]) -> None:
        """Record the epochs that are new."""

    def end(self) -> None:
        """The run has ended."""


class _TensorBoard:
    """RESULTS/tensorboard/RUN/: a scalar for each number of an epoch.

    A resumed run goes on after the epochs that the data set had when it began; a new run of the same name starts
    afresh.
    """

    def __init__(self, root: Path, run: RunDir) -> None:
        self._run = run
        name = tables.name_of(root, run)
        self._place = root / "tensorboard" / name
        self._done = 0
        self._writer: Any = None
        with contextlib.suppress(ConfigError, OSError, IndexError, KeyError):
            info = read_parquet(tables.file_of(root, "runs", name)).to_pylist()[0]
            if info["fingerprint"] == run.config().fingerprint() and self._place.is_dir():
                self._done = min(info["epochs_done"], len(run.read_history()))

    def epochs(self, history: list[dict[str, Any]]) -> None:
        new = [row for row in history if row["epoch"] > self._done]
        if not new:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            if not self._done:
                shutil.rmtree(self._place, ignore_errors=True)
            # The names of event files have seconds, so that a second start might overwrite the first one's.
            self._writer = SummaryWriter(str(self._place), filename_suffix=f".epoch{self._done + 1:04d}")
        for row in new:
            for name, value in epoch_values(row).items():
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()
        self._done = new[-1]["epoch"]

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _MLflow:
    """One MLflow run for a run of ours, continued when that is resumed; its id is in mlflow.json."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._file = run.path / "mlflow.json"
        self._client: Any = None
        self._id = ""
        self._done = 0

    def epochs(self, history: list[dict[str, Any]]) -> None:
        self._begin()
        for row in history:
            if row["epoch"] > self._done:
                for name, value in epoch_values(row).items():
                    self._client.log_metric(self._id, name, value, step=row["epoch"])
                self._done = row["epoch"]
                write_json(self._file, {"run_id": self._id, "epochs": self._done})

    def end(self) -> None:
        """Accuracy at each noise level, and how the run ended."""
        self._begin()
        summary = self._run.summary()
        for attack, row in attack_rows(self._run.points_of(summary)).items():
            for level, point in row.items():
                # MLflow allows no other signs in a name.
                name = f"accuracy_{attack}_{format_noise(level)}".replace("/", "_")
                self._client.log_metric(self._id, name, point.accuracy, step=point.epoch)
        status = {"finished": "FINISHED", "interrupted": "KILLED"}.get(str(summary.get("status")), "FAILED")
        self._client.set_terminated(self._id, status)

    def _begin(self) -> None:
        if self._client is not None:
            return
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise ConfigError("MLFLOW_TRACKING_URI is set, but mlflow is missing: pip install mlflow-skinny.") from None
        config = self._run.config()
        client = MlflowClient()
        known = read_json(self._file)
        if known:
            self._id, self._done = known["run_id"], known["epochs"]
            client.update_run(self._id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ima_dist")
            experiment = client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else client.create_experiment(name)
            self._id = client.create_run(place, run_name=self._run.path.name).info.run_id
            for option, value in option_values(config).items():
                client.log_param(self._id, option, value)
            client.set_tag(self._id, "fingerprint", config.fingerprint())
            write_json(self._file, {"run_id": self._id, "epochs": 0})
        self._client = client

"""Records a run while it goes on: rows in the data set, TensorBoard's event files, and MLflow if it is set up.

The process that started the workers follows the files that they write. Recording must not disturb the run: an error
becomes one warning.
"""

from __future__ import annotations

import contextlib
import os
import platform
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError, complain, first_line
from ima_dist.config.values import option_values
from ima_dist.rundir.curves import attack_rows, format_noise
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import append, read_json, read_parquet, sentence, write_json
from ima_dist.rundir.lease import LeaseLost
from ima_dist.tracking import tables

_POLL_SECONDS = 2.0
# For a server, at the end: one that has answered so far, or not been asked yet; and one that did not the last time.
_END_SECONDS, _LAST_CHANCE = 10.0, 3.0
# Pauses after failures in a row, in polls: each is twice the one before, up to the longest; from the long one on the
# end is not recorded either, unless the last attempt has succeeded.
_LONG_PAUSE, _LONGEST_PAUSE = 8, 150
# Unless the user says otherwise: MLflow's own are 120 s and seven retries, per number.
_MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_LISTS = ("epoch", "margin_quantiles", "margin_histogram")


class Recorder:
    """Context manager that follows a run; on leaving, the last state is recorded.

    ``usual``: the results directory of runs that are given no other (see ``tables.root_of``). A run in no results
    directory leaves no data set and no event files. Leaving waits for the data set, and for a server only
    ``_END_SECONDS``, or ``_LAST_CHANCE``.
    """

    def __init__(self, run: RunDir, usual: Path) -> None:
        root = tables.root_of(run, usual)
        sinks: list[_Sink] = [] if root is None else [_DataSet(root, run), _TensorBoard(root, run)]
        self._followers = [_Follower(run, sink) for sink in sinks]
        # A thread of its own: a server that does not answer must not keep the files from being written.
        self._server = _Follower(run, _MLflow(run), gives_up=True) if os.environ.get("MLFLOW_TRACKING_URI") else None
        self._all = [*self._followers, *([self._server] if self._server else [])]

    def __enter__(self) -> Recorder:
        for follower in self._all:
            follower.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for follower in self._all:
            # If the lease is lost, another process records the run.
            follower.stop(abandon=kind is not None and issubclass(kind, LeaseLost))
        for follower in self._followers:
            follower.join()
        if self._server is not None:
            seconds = _LAST_CHANCE if self._server.failing else _END_SECONDS
            self._server.join(seconds)
            if self._server.is_alive():
                complain(f"warning: not recorded: the MLflow server has not answered for {seconds:g} s")


class _Follower(threading.Thread):
    """Brings a sink up to date whenever the run has changed, until it is stopped. An error becomes a warning, once.

    gives_up: a sink that has failed again and again is not tried once more at the end, so that the run can end.
    """

    def __init__(self, run: RunDir, sink: _Sink, gives_up: bool = False) -> None:
        super().__init__(name="recorder", daemon=True)
        self._gives_up = gives_up
        self.failing = False  # the last attempt has failed
        self._dir, self._sink, self._stamp = run, sink, ""
        self._stopped, self._abandoned = threading.Event(), False
        self._warned: set[str] = set()

    def stop(self, abandon: bool) -> None:
        """Record the last state and end; with ``abandon`` end at once."""
        self._abandoned = self._abandoned or abandon
        self._stopped.set()

    def run(self) -> None:
        pause = _POLL_SECONDS
        while not self._stopped.wait(pause):
            self.failing = not self._try(self._update)
            pause = min(2 * pause, _LONGEST_PAUSE * _POLL_SECONDS) if self.failing else _POLL_SECONDS
        given_up = self._gives_up and pause >= _LONG_PAUSE * _POLL_SECONDS
        if not self._abandoned and not given_up and self._try(self._update):
            self._try(self._sink.end)

    def _update(self) -> None:
        self._dir.check_lease()
        stamp = tables.stamp_of(self._dir)
        if stamp != self._stamp:
            self._sink.update()
            self._stamp = stamp

    def _try(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except LeaseLost:  # another process records the run; the user hears of it from whoever trains
            self.stop(abandon=True)
            return False
        # MLflow has dozens of kinds of errors, and none is worth a training.
        except Exception as error:
            text = sentence(error) if isinstance(error, OSError | ConfigError) else first_line(error)
            if text not in self._warned:
                self._warned.add(text)
                complain(f"warning: not recorded: {text}")
            return False
        return True


def epoch_values(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row of history.parquet."""
    return {name: float(value) for name, value in row.items() if value is not None and name not in _LISTS}


class _Sink:
    """Where a run is recorded."""

    def update(self) -> None:
        """Record what is new in the run."""

    def end(self) -> None:
        """The run has ended."""


class _DataSet(_Sink):
    """RESULTS/dataset/."""

    def __init__(self, root: Path, run: RunDir) -> None:
        self._root, self._run = root, run

    def update(self) -> None:
        tables.write_run(self._root, self._run, going_on=True)

    def end(self) -> None:
        if tables.many_margins(self._run):
            tables.write_run(self._root, self._run)


class _TensorBoard(_Sink):
    """RESULTS/tensorboard/RUN/: one scalar for each number of an epoch.

    A resumed run continues after the epochs that the data set had when it began; a new run of the same name starts
    over.
    """

    def __init__(self, root: Path, run: RunDir) -> None:
        self._run = run
        name = tables.name_of(root, run)
        self._place = root / "tensorboard" / name
        self._done = 0
        self._file: Path | None = None
        with contextlib.suppress(ConfigError, OSError, IndexError, KeyError):
            info = read_parquet(tables.file_of(root, "runs", name)).to_pylist()[0]
            if info["fingerprint"] == run.config().fingerprint() and self._place.is_dir():
                self._done = min(info["epochs_done"], len(run.read_history()))

    def update(self) -> None:
        new = [row for row in self._run.read_history() if row["epoch"] > self._done]
        if not new:
            return
        # Not SummaryWriter: its thread dies on a full disk, and whoever waits for it waits for ever.
        from tensorboardX.proto.event_pb2 import Event

        file = self._events_file()
        header = (
            b""
            if file.exists() and file.stat().st_size
            else _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        )
        append(file, header + b"".join(map(_events, new)))
        self._done = new[-1]["epoch"]

    def _events_file(self) -> Path:
        if self._file is None:
            if not self._done:
                # Ours only: the user may keep other files there.
                for old in self._place.glob("events.out.tfevents.*.epoch[0-9]*"):
                    self._run.remove(old)
            # TensorBoard reads the files of a directory in the order of their names.
            named = f"{int(time.time()):010d}.{platform.node()}.epoch{self._done + 1:04d}"
            self._file = self._place / f"events.out.tfevents.{named}"
        return self._file


def _events(row: dict[str, Any]) -> bytes:
    """The numbers of an epoch as records of an event file."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    step, now = row["epoch"], time.time()
    values = epoch_values(row).items()
    return b"".join(_record(Event(wall_time=now, step=step, summary=scalar(name, value))) for name, value in values)


def _record(event: Any) -> bytes:
    """A record of the TFRecord format: length, its checksum, data, their checksum."""
    from tensorboardX.crc32c import crc32c

    def checksum(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


class _MLflow(_Sink):
    """One MLflow run per run, continued when the run is resumed; its id is in mlflow.json."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._file = run.path / "mlflow.json"
        self._client: Any = None
        self._id = ""
        self._done = 0

    def update(self) -> None:
        self._begin()
        for row in self._run.read_history():
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
                # MLflow allows no slash in a name.
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
        for name, value in _MLFLOW_LIMITS.items():
            os.environ.setdefault(name, value)
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

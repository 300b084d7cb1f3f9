"""Ray Tune: the trials of a sweep. Each is ``ima_dist.train``, and then ``ima_dist.evaluate``, in processes of its own.

A trial's actor holds no CPU: it starts the command, which joins the same Ray cluster and takes the workers it
needs, and tells Tune of every epoch that it finds in the run's history. What an earlier start has done is read
from there as well, so that a continued sweep asks its scheduler and search again without training anything twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.repeater import TRIAL_INDEX, Repeater

from ima_dist import launcher
from ima_dist.config import Config, ConfigError, replace
from ima_dist.elastic import usable_nodes
from ima_dist.jobs import run_path
from ima_dist.launcher import fit_to
from ima_dist.results.pending import next_command
from ima_dist.results.records import Record, earlier_records
from ima_dist.results.rundir import RunDir
from ima_dist.sweeps import Distribution, Sweep

METRIC = "val_robust_accuracy"
STOP_FILE = "stop-requested"
_DONE, _INPUT, _REQUEUE = 0, 2, 75  # exit statuses of the commands
_LOOK_EVERY = 0.3
# Seconds that a command has for its checkpoint.
_LEAVE_WITHIN = 120.0
# The command hears SIGINT alone, which comes from us, also when we have died (PR_SET_PDEATHSIG): a signal that SLURM
# sends to all processes, or that was blocked where Ray was started, must not reach it a second time, or never.
_START = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, signal.SIGINT)
if os.getppid() != parent:
    sys.exit(75)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""


@dataclass(frozen=True)
class Work:
    """What all trials of a sweep share. root: its directory. cpus: of a worker, where the file does not say.
    environment, directory: of the commands.
    """

    sweep: Sweep
    root: Path
    cpus: int
    environment: dict[str, str]
    directory: str


class Trial(tune.Trainable):
    """One run. A result is an epoch of it; the last has "done" and how it ended: "finished", "interrupted",
    "failed" with a "message", or "stopped", by ASHA in an earlier start.
    """

    def setup(self, config: dict[str, Any], work: Work) -> None:  # type: ignore[override]
        self.work, self.ended = work, False
        self.process: subprocess.Popen[bytes] | None = None
        self.asked_at: float | None = None
        self.last_command: tuple[str, list[str]] | None = None
        if "planned" in config:
            values, seed = config["values"], config["seed"]
            run_config, self.epochs = work.sweep.runs[config["planned"]]
        else:
            seed = work.sweep.seeds[config.get(TRIAL_INDEX, 0)]
            values = {name: config[name] for name in work.sweep.space}
            point = work.sweep.point(values, seed)
            run_config, self.epochs = point.config, (point.epoch,)
        self.run = RunDir(run_path(work.root, run_config))
        self.settled = settled(run_config, work.cpus)
        self.record = Record(work.root, self.run.path.name)
        self.first = {"values": values, "seed": seed, "began": self.record.read().get("began", time.time())}
        self.told = 0
        self.newest: dict[str, Any] = {METRIC: math.nan}

    def step(self) -> dict[str, Any]:
        while True:
            row = self._next_epoch()
            if row is not None:
                return row
            if self.process is not None:
                status = self.process.poll()
                if status is None:
                    self._pass_on_stop()
                else:
                    self.process = None
                    if status == _REQUEUE:
                        return self._end("interrupted")
                    if status != _DONE:
                        return self._end("failed", self._sentence(status), status)
                    continue
            elif (self.work.root / STOP_FILE).exists():
                return self._end("interrupted")
            elif self.record.hold():
                if self.work.sweep.asha and self.record.read().get("status") == "stopped":
                    return self._end("stopped")
                try:
                    command = next_command(self.settled, self.run.path, self.epochs)
                except ConfigError as error:
                    return self._end("failed", str(error), _INPUT)
                if command is None:
                    return self._end("finished")
                if command == self.last_command:
                    return self._end("failed", f"{self.run.path} lacks results although its commands have ended", 1)
                self.last_command = command
                self._start(*command)
            time.sleep(_LOOK_EVERY)

    def cleanup(self) -> None:
        """Tune wants no more of this trial: it has ended, or the scheduler stops it."""
        if not self.ended:
            stopped = not (self.work.root / STOP_FILE).exists()
            # One that had finished before is only looked at again.
            if self.record.read().get("status") != "finished":
                self.record.write(**self.first, status="stopped" if stopped else "interrupted", epoch=self.told)
            self._end_process()
        self.record.release()

    def _next_epoch(self) -> dict[str, Any] | None:
        """The next epoch that Tune has not heard of; the last is told at the end, with the outcome."""
        rows = []
        with contextlib.suppress(ConfigError, OSError):
            rows = [row for row in self.run.read_history() if row["epoch"] > self.told]
        if not rows:
            return None
        row = min(rows, key=lambda row: row["epoch"])
        metric = row.get(METRIC)
        self.newest = {METRIC: math.nan if metric is None else metric, "val_accuracy": row.get("val_accuracy")}
        if row["epoch"] >= self.settled.epochs:
            return None
        self.told = row["epoch"]
        return {"epoch": self.told, **self.newest}

    def _end(self, status: str, message: str | None = None, code: int = 0) -> dict[str, Any]:
        self.ended = True
        epoch = self.settled.epochs if status == "finished" else self.told
        if self.record.hold():
            self.record.write(**self.first, status=status, message=message, epoch=epoch, code=code)
        self.record.release()
        # To be heard by the search, which takes the last result.
        metric = {METRIC: math.nan} if status == "failed" else self.newest
        return {"done": True, "status": status, "message": message, "epoch": epoch, **metric}

    def _start(self, module: str, words: list[str]) -> None:
        command = [sys.executable, "-c", _START, str(os.getpid()), module, *words]
        with self.record.output.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=self.work.environment,
                cwd=self.work.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.record.write(**self.first, status="running", message=None)

    def _pass_on_stop(self) -> None:
        assert self.process is not None
        if self.asked_at is None:
            if (self.work.root / STOP_FILE).exists():
                self.process.send_signal(signal.SIGINT)
                self.asked_at = time.monotonic()
        elif time.monotonic() - self.asked_at > _LEAVE_WITHIN:
            self.process.kill()

    def _end_process(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None and self.asked_at is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(_LEAVE_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _sentence(self, status: int) -> str:
        """Why a command has failed: the last complaint in its output."""
        lines = self.record.output.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else f"It ended with status {status}: see {self.record.output}"


def settled(config: Config, cpus: int) -> Config:
    """``config`` with a number of workers and of their CPUs: a run of a sweep does not take what is there."""
    return replace(config, {"workers": config.workers or 1, "cpus_per_worker": config.cpus_per_worker or cpus})


def share_of_cpus(config: Config, nodes: list[dict[str, float]]) -> int:
    """CPUs of a worker: one, or with cards, what each card has of its node's."""
    with_cards = [int(n.get("CPU", 0)) // int(n["GPU"]) for n in nodes if n.get("GPU", 0) >= 1]
    return max(1, min(with_cards)) if with_cards and config.device != "cpu" else 1


def trials_at_once(configs: list[Config], nodes: list[dict[str, float]]) -> int:
    """How many trials of the largest kind the nodes hold at a time. Raises ConfigError if they cannot hold one."""
    counts = []
    for config in configs:
        needs = fit_to(config, nodes)
        cpus, workers = needs.cpus_per_worker, needs.least or needs.workers
        slots = sum(
            min(int(n.get("CPU", 0)) // cpus, int(n.get("GPU", 0)) if needs.use_gpu else sys.maxsize) for n in nodes
        )
        counts.append(max(1, slots // workers))
    return min(counts)


def run_sweep(sweep: Sweep, root: Path, say: Callable[[str], None]) -> bool:
    """Run what is unfinished of a sweep in ``root``; each trial leaves a ``Record`` there. Main thread only.

    Joins the cluster named by RAY_ADDRESS, or starts one. Returns whether it was stopped by a signal.
    Raises ConfigError if the cluster cannot hold a trial, and RuntimeError, one sentence, if it was lost.
    """
    stop = root / STOP_FILE
    stop.unlink(missing_ok=True)
    configs = [config for config, _ in sweep.runs.values()] or [sweep.any_point().config]
    with contextlib.ExitStack() as held:
        held.enter_context(launcher.cluster(settled(configs[0], 1)))
        nodes = [node["Resources"] for node in usable_nodes()]
        cpus = share_of_cpus(configs[0], nodes)
        settled_configs = [settled(config, cpus) for config in configs]
        at_once = trials_at_once(settled_configs, nodes)
        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        work = Work(sweep, root, cpus, environment, os.getcwd())
        say(f"Up to {at_once} trial{'s' * (at_once != 1)} at a time.")
        storage = held.enter_context(tempfile.TemporaryDirectory(prefix="ima-sweep-"))
        held.enter_context(_quiet_tune())
        tuner = _tuner(work, at_once, Path(storage), say)
        held.enter_context(launcher.handing_on_signals(stop, lambda: None))
        try:
            launcher.fit_while_connected(tuner)
            _wait_for_trials(root)
        finally:
            stopped = stop.exists()
            stop.unlink(missing_ok=True)
    return stopped


def _wait_for_trials(root: Path) -> None:
    """Tune does not wait for the trials that it has stopped last, and their commands need the cluster to end well."""
    until = time.monotonic() + _LEAVE_WITHIN
    for path in (root / "trials").glob("*.lock"):
        record = Record(root, path.stem)
        while not record.hold() and time.monotonic() < until:
            time.sleep(_LOOK_EVERY)
        record.release()


def _tuner(work: Work, at_once: int, storage: Path, say: Callable[[str], None]) -> tune.Tuner:
    sweep = work.sweep
    search: Any = None
    space: dict[str, Any] = {}
    count, over = 1, 0
    if sweep.search == "optuna":
        earlier = _earlier(work)
        search = OptunaSearch(
            space={name: _domain(d) for name, d in sweep.space.items()},
            metric=METRIC,
            mode="max",
            # What is asked for again draws no random numbers: with one seed the first ones would come again.
            seed=len(earlier),
            points_to_evaluate=earlier or None,
        )
        count = sweep.samples * len(sweep.seeds)
        if len(sweep.seeds) > 1:
            search = Repeater(search, repeat=len(sweep.seeds))
    else:
        described: dict[str, dict[str, Any]] = {}
        for point in sweep.points:
            name = run_path(Path(), point.config).name
            # ASHA compares with what has finished, too.
            if sweep.asha or _next(work, name) is not None:
                described.setdefault(name, {"planned": name, "values": point.values, "seed": point.seed})
        space = {"trial": tune.grid_search(list(described.values()))}
        over = len(sweep.runs) - len(described)
    scheduler = None
    if sweep.asha:
        most = max((config.epochs for config, _ in sweep.runs.values()), default=1 << 20)
        scheduler = tune.schedulers.AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=METRIC,
            mode="max",
            # A trial that has reached its end is not to be stopped there, before it is evaluated.
            max_t=max(most + 1, sweep.asha.grace),
            grace_period=sweep.asha.grace,
            reduction_factor=sweep.asha.reduction,
        )
    # Where the driver is, so that the commands share its directory and environment; a node offers 1 of this.
    here = f"node:{ray.util.get_node_ip_address()}"
    trainable = tune.with_parameters(_Planned if sweep.search != "optuna" else Trial, work=work)
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, here: 0.0001}),
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=count, max_concurrent_trials=at_once, search_alg=search, scheduler=scheduler
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            callbacks=[_Lines(sweep, over, say)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            # The run has checkpoints of its own.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


class _Planned(Trial):
    """A trial that the planner has made: Tune's grid holds it whole."""

    def setup(self, config: dict[str, Any], work: Work) -> None:  # type: ignore[override]
        super().setup(config["trial"], work)


class _Lines(tune.Callback):
    """A line for every trial that begins or ends."""

    def __init__(self, sweep: Sweep, over: int, say: Callable[[str], None]) -> None:
        self._sweep, self._say = sweep, say
        self._total = len(sweep.runs) or sweep.samples * len(sweep.seeds)
        self._over = over

    def _name(self, trial: Any) -> str:
        given = trial.config.get("trial")
        if given is None:
            seed = self._sweep.seeds[trial.config.get(TRIAL_INDEX, 0)]
            given = {"values": {n: trial.config[n] for n in self._sweep.space}, "seed": seed}
        words = [f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in given["values"].items()]
        return " ".join([*words, f"seed={given['seed']}"])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"{time.strftime('%H:%M:%S')}  begins: {self._name(trial)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over += 1
        last = trial.last_result or {}
        status = last.get("status") or f"stopped by ASHA after epoch {last.get('epoch')}"
        message = f": {last['message']}" if last.get("message") else ""
        self._say(f"{time.strftime('%H:%M:%S')}  {self._over}/{self._total} {status}: {self._name(trial)}{message}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over += 1
        self._say(f"{time.strftime('%H:%M:%S')}  {self._over}/{self._total} lost: {self._name(trial)}")


def _next(work: Work, name: str) -> tuple[str, list[str]] | None:
    config, epochs = work.sweep.runs[name]
    return next_command(config, work.root / name, epochs)


def _domain(d: Distribution) -> Any:
    if d.kind == "choice":
        return tune.choice(list(d.bounds))
    low, high = d.bounds
    if d.kind == "randint":
        return tune.randint(low, high + 1)
    return tune.uniform(low, high) if d.kind == "uniform" else tune.loguniform(low, high)


def _earlier(work: Work) -> list[dict[str, Any]]:
    """Combinations of an earlier start, to be asked for first; they are read from disk, not trained."""
    found: dict[str, dict[str, Any]] = {}
    for record in earlier_records(work.root):
        values = record.get("values", {})
        if set(values) == set(work.sweep.space):
            found.setdefault(json.dumps(values, sort_keys=True), values)
    return list(found.values())


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """What concerns our user we say ourselves."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

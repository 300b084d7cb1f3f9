"""Run the trials of a sweep with Ray Tune, as many at a time as the cluster holds."""

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.repeater import Repeater

from ima_dist.launch.cluster import ray_cluster, settled, share_of_cpus, trials_at_once
from ima_dist.launch.elastic import usable_nodes
from ima_dist.launch.signals import forwarding_signals
from ima_dist.launch.trial import LEAVE_WITHIN, LOOK_EVERY, METRIC, Trial, Work, combination
from ima_dist.launch.workers import fit_while_connected
from ima_dist.plans.jobfile import run_path
from ima_dist.plans.pending import next_command
from ima_dist.plans.sweepfile import Distribution, Sweep
from ima_dist.plans.trial_record import Record, earlier_records
from ima_dist.worker.main import STOP_FILE


def run_sweep(sweep: Sweep, root: Path, say: Callable[[str], None]) -> bool:
    """Run the unfinished trials of a sweep in ``root``; each leaves a ``Record`` there. Main thread only.

    Joins the cluster named by RAY_ADDRESS, or starts one. Returns whether it was stopped by a signal.
    Raises ConfigError if the cluster cannot hold a trial, and RuntimeError, one sentence, if it was lost.
    """
    stop = root / STOP_FILE
    stop.unlink(missing_ok=True)
    configs = [config for config, _ in sweep.runs.values()] or [sweep.any_point().config]
    with contextlib.ExitStack() as held:
        held.enter_context(ray_cluster(settled(configs[0], 1)))
        nodes = [node["Resources"] for node in usable_nodes()]
        cpus = share_of_cpus(configs[0], nodes)
        at_once = trials_at_once([settled(config, cpus) for config in configs], nodes)
        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        work = Work(sweep, root, cpus, environment, os.getcwd())
        say(f"Up to {at_once} trial{'s' * (at_once != 1)} at a time.")
        storage = held.enter_context(tempfile.TemporaryDirectory(prefix="ima-sweep-"))
        _quiet_tune()
        tuner = _tuner(work, at_once, Path(storage), say)
        held.enter_context(forwarding_signals(stop, ray.shutdown))
        try:
            fit_while_connected(tuner)
            _wait_for_trials(root)
        finally:
            stopped = stop.exists()
            stop.unlink(missing_ok=True)
    return stopped


def _wait_for_trials(root: Path) -> None:
    """Wait for the trials that Tune stopped last: it does not, but their commands need the cluster to exit cleanly."""
    until = time.monotonic() + LEAVE_WITHIN
    for path in (root / "trials").glob("*.lock"):
        record = Record(root, path.stem)
        while not record.hold() and time.monotonic() < until:
            time.sleep(LOOK_EVERY)
        record.release()


def _tuner(work: Work, at_once: int, storage: Path, say: Callable[[str], None]) -> tune.Tuner:
    sweep = work.sweep
    if sweep.search == "optuna":
        search, space, count, over = _search(work), {}, sweep.planned, 0
    else:
        left = _trials_left(work)
        search, space, count, over = None, {"trial": tune.grid_search(left)}, 1, len(sweep.runs) - len(left)
    # The commands share the driver's directory and environment, so trials run on its node, which offers 1 of this.
    here = f"node:{ray.util.get_node_ip_address()}"
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, work=work), {"cpu": 0, here: 0.0001}),
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=count, max_concurrent_trials=at_once, search_alg=search, scheduler=_scheduler(sweep)
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            callbacks=[_Lines(sweep, over, say)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            # A run writes checkpoints of its own.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _search(work: Work) -> Any:
    sweep = work.sweep
    earlier = _earlier(work)
    search = OptunaSearch(
        space={name: _domain(d) for name, d in sweep.space.items()},
        metric=METRIC,
        mode="max",
        # Points to evaluate draw no random numbers: with a constant seed, the first drawn ones would come again.
        seed=len(earlier),
        points_to_evaluate=earlier or None,
    )
    return Repeater(search, repeat=len(sweep.seeds)) if len(sweep.seeds) > 1 else search


def _trials_left(work: Work) -> list[dict[str, Any]]:
    """One entry per run. With ASHA also the finished ones, since it compares others with them."""
    described: dict[str, dict[str, Any]] = {}
    for point in work.sweep.points:
        name = run_path(Path(), point.config).name
        config, epochs = work.sweep.runs[name]
        if work.sweep.asha or next_command(config, work.root / name, epochs) is not None:
            described.setdefault(name, {"planned": name, "values": point.values, "seed": point.seed})
    return list(described.values())


def _scheduler(sweep: Sweep) -> Any:
    if not sweep.asha:
        return None
    most = max((config.epochs for config, _ in sweep.runs.values()), default=1 << 20)
    return tune.schedulers.AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        # Above the last epoch, or ASHA would stop a trial there, before it is evaluated.
        max_t=max(most + 1, sweep.asha.grace),
        grace_period=sweep.asha.grace,
        reduction_factor=sweep.asha.reduction,
    )


class _Lines(tune.Callback):
    """Prints a line when a trial starts or ends."""

    def __init__(self, sweep: Sweep, over: int, say: Callable[[str], None]) -> None:
        self._sweep, self._over, self._say = sweep, over, say
        self._total = len(sweep.runs) or sweep.planned

    def _name(self, trial: Any) -> str:
        values, seed = combination(self._sweep, trial.config)
        words = [f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in values.items()]
        return " ".join([*words, f"seed={seed}"])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"{time.strftime('%H:%M:%S')}  started: {self._name(trial)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over += 1
        last = trial.last_result or {}
        status = last.get("status") or f"stopped by ASHA after epoch {last.get('epoch')}"
        message = f": {last['message']}" if last.get("message") else ""
        self._say(f"{time.strftime('%H:%M:%S')}  {self._over}/{self._total} {status}: {self._name(trial)}{message}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over += 1
        self._say(f"{time.strftime('%H:%M:%S')}  {self._over}/{self._total} crashed: {self._name(trial)}")


def _domain(d: Distribution) -> Any:
    if d.kind == "choice":
        return tune.choice(list(d.bounds))
    low, high = d.bounds
    if d.kind == "randint":
        return tune.randint(low, high + 1)
    return tune.uniform(low, high) if d.kind == "uniform" else tune.loguniform(low, high)


def _earlier(work: Work) -> list[dict[str, Any]]:
    """The combinations of earlier starts, which the search is given first; their runs are not trained again."""
    tried = [record.get("values", {}) for record in earlier_records(work.root)]
    found = {json.dumps(values, sort_keys=True): values for values in tried if set(values) == set(work.sweep.space)}
    return list(found.values())


def _quiet_tune() -> None:
    """Silence Tune: ``_Lines`` prints what concerns the user."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)

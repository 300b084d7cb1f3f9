"""The tasks of a worker: train (and then evaluate), evaluate, audit. All workers call one together."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from ima_dist.attacks.memory import most_at_once
from ima_dist.config.attacks import SMOOTHING
from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.data.augment import augmentation
from ima_dist.data.batch_sizes import evaluation_batch_size
from ima_dist.data.choosing import to_attack
from ima_dist.data.groups import group_codes
from ima_dist.data.load import load
from ima_dist.data.pipeline import Streamed
from ima_dist.data.place import place
from ima_dist.data.types import Samples, Split
from ima_dist.evaluation import artefacts, outcomes, smoothing
from ima_dist.evaluation.batch import Met
from ima_dist.evaluation.clean import clean_results
from ima_dist.evaluation.lost_first import write_lost_first
from ima_dist.evaluation.margin_audit import audit, keep, to_audit
from ima_dist.evaluation.restored import restore
from ima_dist.evaluation.runner import evaluate, forget
from ima_dist.evaluation.self_test import self_test
from ima_dist.results import paper, self_tests
from ima_dist.results.overfitting import overfitting, single_step
from ima_dist.results.self_tests import MOST_TESTED, NOT_TESTED
from ima_dist.rundir.curves import Point
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.inputs import write_inputs
from ima_dist.training.checkpoint import Damaged, load_weights
from ima_dist.training.class_weights import class_weights
from ima_dist.training.early_stop import ended
from ima_dist.training.loop import Training
from ima_dist.training.network import DTYPES, limit_threads, make_network, use_tf32
from ima_dist.training.resume import check_same_data
from ima_dist.worker.watchdog import watched

_FINISHED = {"status": "finished", "message": None}


def train_task(config: Config, run: RunDir, device: torch.device, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Train from wherever the run is to its end, evaluate, draw. Returns {"status", "message"}."""
    began = time.perf_counter()
    task = _Task(config, run, device, should_stop)
    if distributed.rank() == 0:
        write_inputs(run, artefacts.describe(task.data))
        run.for_display(lambda: artefacts.write_names(run, task.data))
    training = Training(config, run, task.data, device, should_stop)
    with watched(run, training.network, config.hang_after):
        network = training.fit()
    seconds = {"train": time.perf_counter() - began}
    if distributed.rank() == 0 and training.train.shape == (2,):  # choosing takes memory for every sample
        points = to_attack(task.data.train, 4000, config.eval.order)
        run.for_display(lambda: artefacts.write_boundary(run, network, training.train, points))
    trained = sum(row["train_seconds"] + (row["margin_seconds"] or 0.0) for row in training.history)
    speed = len(training.train) * len(training.history) / max(trained, 1e-9)
    task.evaluate(network, config.epochs, seconds)
    if distributed.rank() == 0:
        if not run.samples_path.exists():  # there was no room for it
            artefacts.write_names(run, task.data)
        about: dict[str, Any] = {"train_samples_per_second": speed}
        if single_step(config):
            found = overfitting(config, training.history)
            about["catastrophic_overfitting"] = None if found is None else found.epoch
        early = ended(training.history, config)
        if early is not None:
            about["early_stop"] = early._asdict()
        if config.autocast == "float16":
            about["skipped_steps"] = sum(row.get("skipped_steps") or 0 for row in training.history)
        run.write_json(run.summary_path, {**run.summary(), **_FINISHED, **about})
    return dict(_FINISHED)


def evaluate_task(
    config: Config,
    run: RunDir,
    device: torch.device,
    should_stop: Callable[[], bool],
    epochs: list[int],
    self_test: bool = False,
) -> dict[str, Any]:
    """Evaluate a run's networks after ``epochs`` with ``config.eval``. Returns {"status", "message"}.

    self_test: also test the attacks themselves, on each network.
    """
    task = _Task(config, run, device, should_stop)
    for epoch in epochs:
        task.evaluate(task.trained_network(epoch), epoch, {}, test_attacks=self_test)
    return dict(_FINISHED)


def audit_task(
    config: Config, run: RunDir, device: torch.device, should_stop: Callable[[], bool], samples: int
) -> dict[str, Any]:
    """Compare the newest stored margins with an independent attack; see ``evaluation.margin_audit``."""
    task = _Task(config, run, device, should_stop)
    train = task.placed(task.data.train)
    chosen = to_audit(task.data.train, samples, config)
    # Only one worker looks: another might not see the newest directory yet.
    newest = run.over_margins(_picking(chosen)) if distributed.rank() == 0 else None
    epoch: int = distributed.together(lambda: _epoch_of(newest))
    # The margins are those of the weights that were attacked in training.
    network = task.trained_network(epoch, raw=config.ema > 0)
    found = audit(
        network,
        train,
        None if newest is None else newest[1],
        config,
        epoch=epoch,
        samples=chosen,
        augment=augmentation(config.data.augment, task.data),
        **task.conduct(network, train, epoch),
    )
    if found is not None:
        keep(run, found.append_column("epoch", pa.array([epoch] * found.num_rows)))
        _show(run, {"stage": "done", "epoch": epoch, "epochs": config.epochs})
    return dict(_FINISHED)


def _picking(samples: torch.Tensor) -> Callable[[int, int, Iterator[pa.Table]], tuple[int, pa.Table]]:
    """What ``RunDir.over_margins`` takes, for the rows of these samples."""
    wanted = pa.array(samples.numpy())

    def pick(epoch: int, total: int, pieces: Iterator[pa.Table]) -> tuple[int, pa.Table]:
        return epoch, pa.concat_tables(piece.filter(pc.is_in(piece["index"], wanted)) for piece in pieces)

    return pick


def _epoch_of(newest: tuple[int, pa.Table] | None) -> int:
    if newest is None:
        raise Damaged("the run has lost its margins since the start of this command")
    return newest[0]


class _Task:
    """A run, its data, and the device that its networks are computed on."""

    def __init__(self, config: Config, run: RunDir, device: torch.device, should_stop: Callable[[], bool]) -> None:
        self.config, self.run, self.device, self.should_stop = config, run, device, should_stop
        self.data = load(config.data, config.seed)
        #: Of the test samples, as whole numbers, for intervals; None if they are not known.
        self.groups = group_codes(self.data.test)
        limit_threads(self.data)

    def trained_network(self, epoch: int, *, raw: bool = False) -> nn.Module:
        """The run's network after ``epoch`` epochs; raw: with the weights that are trained, not their average."""
        check_same_data(self.data.digest())
        network = make_network(self.config, self.data, trained=True).to(self.device)
        load_weights(self.run, epoch, self.data.digest(), network, raw=raw)
        return network

    def placed(self, split: Split) -> Samples:
        config = self.config
        return place([split], config.data.place, self.device, DTYPES[config.dtype], self.data.box).samples[0]

    def conduct(self, network: nn.Module, samples: Samples, epoch: int) -> dict[str, Any]:
        """How an evaluation of these samples runs, as arguments: in which batches, until when, and what it reports.

        Never in TF32: the user's modules, imported by now, may have switched it on.
        """
        use_tf32(False)
        self.at_once = most_at_once(network, *samples.batch(torch.arange(min(8, len(samples)))))

        def write(done: int, total: int) -> None:
            if distributed.rank() == 0:
                progress = {"stage": "evaluation", "evaluation_done": done, "evaluation_total": total}
                _show(self.run, {**progress, "epoch": epoch, "epochs": self.config.epochs})

        batch_size = min(evaluation_batch_size(self.config.batch_size, samples), self.at_once)
        return {"batch_size": batch_size, "should_stop": self.should_stop, "on_progress": write}

    def evaluate(self, network: nn.Module, epoch: int, seconds: dict[str, float], test_attacks: bool = False) -> None:
        """Attack the network after ``epoch`` epochs; worker 0 records what was found, and ``seconds`` spent before."""
        began = time.perf_counter()
        config, run, digest = self.config, self.run, self.data.digest()
        test = self.placed(self.data.test)
        known = (len(self.data.test), self.data.num_classes, self.groups)
        distributed.together(lambda: restore(run, config, *known))
        samples = to_attack(self.data.test, config.eval.samples, config.eval.order)
        conduct = {"samples": samples, "epoch": epoch, "digest": digest, **self.conduct(network, test, epoch)}
        about = _description(config, network, test, digest, self.data.num_classes)
        weights = class_weights(config, self.data)
        about |= {} if weights is None else {"class_weights": weights.tolist()}
        about |= {} if self.data.split_level is None else {"split_level": self.data.split_level}
        said: dict[str, list[str]] = {}
        points: list[Point] = []

        def save(found: pa.Table, remarks: list[str], met: Met) -> None:
            said[found["attack"][0].as_py()] = remarks
            if found["attack"][0].as_py() == SMOOTHING:
                smoothing.save(run, found, config, about)
                return
            points.extend(outcomes.save(run, found, config, about, met, self.groups, remarks))

        with watched(run, network, config.hang_after):
            failed = evaluate(network, test, config, run, on_finished=save, **conduct)
            tested = self._test_attacks(network, test, samples, epoch, failed) if test_attacks else []
        if distributed.rank() != 0:
            return
        of_whole_training: dict[str, Any] = {}
        if epoch == config.epochs:
            # A weaker evaluation does not replace the pictures of a stronger one.
            if outcomes.is_shown(run, points):
                images = (test, samples, config, self.data, self.should_stop)
                run.for_display(lambda: artefacts.write_noisy_images(run, network, *images))
                named = (config, self.data.class_names, self.should_stop)
                run.for_display(lambda: write_lost_first(run, network, test, *named))
            train = Streamed(self.data.train, "cpu", DTYPES[config.dtype], self.data.box)
            run.for_display(lambda: artefacts.write_extremes(run, train, self.data))
            how: dict[str, Any] = {"epoch": epoch, "at_once": self.at_once, "groups": self.groups}
            of_whole_training = clean_results(run, network, self.data, test, lambda: self.placed(self.data.val), **how)
        seconds = {**run.summary().get("seconds", {}), **seconds, "evaluate": time.perf_counter() - began}
        about |= {"seconds": seconds, **of_whole_training}
        about["remarks"] = _merged(run, "remarks", config, epoch, said)
        if tested:
            about["self_tests"] = self_tests.joined(run.summary().get("self_tests"), tested)
        about["failed_attacks"] = _merged(run, "failed_attacks", config, epoch, failed)
        run.write_json(run.summary_path, {**run.summary(), **about})
        forget(run, config, epoch, digest, failed)
        _show(run, {"stage": "done", "epoch": epoch, "epochs": config.epochs})

    def _test_attacks(
        self, network: nn.Module, test: Samples, samples: torch.Tensor, epoch: int, failed: dict[str, str]
    ) -> list[dict[str, Any]]:
        """The entries of "self_tests" for the attacks that have not ``failed``, on a few samples. Collective."""
        attacks = [attack for attack in self.config.eval.attacks if attack not in (*failed, *NOT_TESTED)]
        few = to_attack(self.data.test, min(len(samples), MOST_TESTED), self.config.eval.order)
        how: dict[str, Any] = {"samples": few, "epoch": epoch, "at_once": self.at_once}
        return self_test(network, test, self.config, attacks, should_stop=self.should_stop, **how)


def _show(run: RunDir, state: dict[str, Any]) -> None:
    """Rewrite progress.json."""
    run.write_progress({**state, "warnings": run.dropped})


def _description(config: Config, network: nn.Module, test: Samples, digest: str, classes: int) -> dict[str, Any]:
    """What summary.json says of a run besides its results."""
    row = paper.row_of(config)
    return {
        **{name: getattr(config, name) for name in ("preset", "method", "norm", "seed")},
        "paper_table": row[0] if row else None,
        "parameters": sum(p.numel() for p in network.parameters()),
        "test_samples": len(test),
        "classes": classes,
        "data_digest": digest,
    }


def _merged(run: RunDir, name: str, config: Config, epoch: int, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Epoch -> attack -> what there is to say of its last evaluation: the entry ``name`` of summary.json."""
    before: dict[str, dict[str, Any]] = run.summary().get(name, {})
    others = {attack: said for attack, said in before.get(str(epoch), {}).items() if attack not in config.eval.attacks}
    here = {**others, **{attack: said for attack, said in found.items() if said}}
    return {key: value for key, value in {**before, str(epoch): here}.items() if value}

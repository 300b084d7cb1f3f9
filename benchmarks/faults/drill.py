"""One fault, from beginning to end."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import torch
from safetensors.torch import load

from benchmarks.faults.command import EPOCHS, STEPS, Command, last_whole, read
from benchmarks.faults.kinds import BREAK_THE_CLUSTER, KINDS
from benchmarks.faults.outcome import Outcome
from benchmarks.hosts import Hosts, two_hosts
from ima_dist.margins.store import MarginStore
from ima_dist.rundir.directory import RunDir

_TRIES = 20
_MAKING_HOSTS = threading.Lock()

State = tuple[dict[str, torch.Tensor], torch.Tensor]


class Ground:
    """A directory, a small disk, and two hosts, made when they are needed and kept until something breaks them."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.disk = directory, directory / "disk"
        self._stack = contextlib.ExitStack()
        self._hosts: Hosts | None = None

    def hosts(self) -> Hosts:
        if self._hosts is None:
            # One pair at a time: on a busy machine a Ray node often misses time limits of its own as it is.
            with _MAKING_HOSTS:
                self._hosts = self._make_hosts()
        return self._hosts

    def _make_hosts(self) -> Hosts:
        for tries in range(_TRIES):
            try:
                return self._stack.enter_context(two_hosts(self.directory, FAULTS_COUNT=str(self.directory / "count")))
            except ChildProcessError as error:
                print(f"Hosts, attempt {tries + 1}: {error}", file=sys.stderr)
        raise RuntimeError(f"No hosts could be made in {_TRIES} attempts")

    def clear(self) -> None:
        self._hosts = None
        self._stack.close()


@contextlib.contextmanager
def ground_in(directory: Path) -> Iterator[Ground]:
    """A new directory, with a file system of its own in it that can be filled."""
    ground = Ground(directory)
    ground.disk.mkdir(parents=True)
    # Before the hosts are made: their processes do not see what is mounted later.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(ground.disk)], check=True)
    try:
        yield ground
    finally:
        ground.clear()
        subprocess.run(["umount", "--lazy", str(ground.disk)], check=True)


Fault = tuple[str, str]  # kind and seed


def drill(next_fault: Callable[[], Fault | None], reference: Future[State], ground: Ground) -> list[Outcome]:
    """One run, struck once in each epoch until it is finished."""
    outcomes: list[Outcome] = []
    (ground.directory / "count").unlink(missing_ok=True)
    run = RunDir(ground.disk / "run")
    epoch = 0
    while epoch < EPOCHS and not _finished(run) and (fault := next_fault()):
        # The first epoch begins without a file of margins that could be damaged.
        epoch = max(epoch, 1 if fault[0] == "flipped_byte" else 0)
        command = Command(ground.hosts(), run, ground.directory)
        outcome = _strike(command, *fault, epoch, outcomes)
        if outcome is None:
            print(f"The run ended before {fault} with: {command.sentence()}", file=sys.stderr)
            break
        outcomes.append(outcome)
        if KINDS[fault[0]] in BREAK_THE_CLUSTER:
            ground.clear()
        epoch += 1
    if outcomes and not _finished(run):
        command = Command(ground.hosts(), run, ground.directory)
        command.end()
        _say(outcomes[-1], command.warnings())
        if not _finished(run):
            print(f"The run cannot be finished after {outcomes[-1]}: {command.sentence()}", file=sys.stderr)
    if _finished(run):
        difference = _difference(run, reference.result())
        steps = read(ground.directory / "count").count("t")
        for outcome in outcomes:
            outcome.difference = difference
            outcome.recounted = steps == EPOCHS * STEPS + sum(o.lost for o in outcomes)
    shutil.rmtree(run.path)
    return outcomes


def _strike(command: Command, kind: str, seed: str, epoch: int, before: list[Outcome]) -> Outcome | None:
    """Break something in the given epoch (from 0); None if the command ends before.

    before: the faults that the run has survived; what the command says until it is struck belongs to the last of them.
    """
    rng = random.Random(seed)
    step, passes = rng.randrange(1, STEPS + 1), 0
    moment = f"epoch {epoch + 1}, step {step}"
    if rng.random() < 0.25:
        step, passes = STEPS, rng.randrange(1, 10)
        moment = f"epoch {epoch + 1}, margin pass"
    at = epoch * STEPS + step
    ready = command.wait_for(lambda: command.reached() >= (at, passes))
    said = command.warnings()
    if before:
        _say(before[-1], said)
    if not ready:
        return None
    struck = time.monotonic()
    KINDS[kind](command, rng)
    status = command.end()
    outcome = Outcome(kind, seed, moment, status, seconds=time.monotonic() - struck)
    if status >= 0:  # killed, it says nothing
        outcome.sentence = command.sentence()
    _say(outcome, command.warnings()[len(said) :])
    outcome.left = command.left()
    outcome.survived = _finished(command.run)
    outcome.lost = 0 if outcome.survived else command.reached()[0] - last_whole(command.run)
    (command.run.path / "filler").unlink(missing_ok=True)
    return outcome


def _say(outcome: Outcome, warnings: list[str]) -> None:
    outcome.sentence = " ".join([outcome.sentence, *warnings]).strip()


def _finished(run: RunDir) -> bool:
    return run.config_path.exists() and run.status == "finished"


def undisturbed(ground: Ground) -> State:
    """What the run ends with when nothing happens."""
    run = RunDir(ground.directory / "undisturbed")
    command = Command(ground.hosts(), run, ground.directory)
    if command.end() or command.reached()[0] != EPOCHS * STEPS:
        raise RuntimeError(f"the undisturbed run failed: {command.sentence()}")
    return state(run)


def state(run: RunDir) -> State:
    """Weights and margins after the last epoch."""
    name = f"epoch={EPOCHS:04d}"
    weights = load((run.checkpoints_dir / name / "model.safetensors").read_bytes())
    return weights, MarginStore.load(run.margins_dir / name).shard


def _difference(run: RunDir, reference: State) -> float:
    weights, margins = state(run)
    pairs = [(weights[k], reference[0][k]) for k in reference[0]] + [(margins, reference[1])]
    return max(float((a - b).abs().max()) for a, b in pairs)

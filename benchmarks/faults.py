"""``python -m benchmarks.faults [--faults N] [--seed S] [--kinds A,B] [--table FILE]``: break runs in every way.

Moons is trained on two hosts (network namespaces with a Ray node each; needs root). In every epoch, or in the margin
pass after it, at a moment drawn from the seed, something is broken, and what the run makes of it is recorded; then it
is resumed, on a new cluster if the old one was broken. In the end margins and weights must equal those of an
undisturbed run to 1e-9 (float64). No fault may cost more training steps than were done since the last checkpoint, and
no process of the run may be left. Prints a line a fault, then all as Markdown. Exit status 1 if a fault did harm.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load

from benchmarks.hosts import ROOT, Hosts, processes_on, two_hosts, why_not
from ima_dist.config.values import as_flags
from ima_dist.margins.store import MarginStore
from ima_dist.rundir.directory import RunDir

EPOCHS, STEPS, EVERY = 4, 20, 5
OPTIONS = {
    "data.subset": 1000,
    "batch_size": 50,
    "epochs": EPOCHS,
    "checkpoint_every": EVERY,
    "dtype": "float64",
    "workers": 2,
    "optimizer.lr": 0.01,
    "eval.attacks": ("worst",),
    "eval.steps": 2,
    "eval.noise": (0.0, 0.1),
    "model.factory": "benchmarks.slow_network:build",
}
_PATIENCE = 400.0  # seconds for a run to end, or to reach the moment of the fault
_GONE_AFTER = 120.0  # seconds that the workers of a run may outlive its command
_TRIES = 20
_MAKING_HOSTS = threading.Lock()
_LARGEST_DIFFERENCE = 1e-9


@dataclass
class Outcome:
    """What a fault led to.

    moment: where it struck. status, sentence: exit status of the disturbed command (negative: a signal) and the last
    that it said. seconds: from the fault to its end. survived: the command finished the run all the same. lost:
    training steps that had been begun and are in no whole checkpoint. left: processes of the run that did not end
    with it. difference: of the run's result from the undisturbed one. recounted: the steps of the run, counted one by
    one, are those of an undisturbed run and those lost to its faults.
    """

    kind: str
    seed: str
    moment: str
    status: int = 0
    sentence: str = ""
    seconds: float = 0.0
    survived: bool = False
    lost: int = 0
    left: int = 0
    difference: float = float("inf")
    recounted: bool = False

    @property
    def harmless(self) -> bool:
        return self.difference < _LARGEST_DIFFERENCE and self.lost <= most_lost(self.kind) and self.whole

    @property
    def whole(self) -> bool:
        return self.recounted and not self.left


def most_lost(kind: str) -> int:
    """Steps that a fault of this kind may cost: those between two checkpoints.

    Where the fault lies in the newest checkpoint itself, those since the one before are gone too. All mid-epoch
    checkpoints need the margins that the epoch began with; if these are damaged, the last one of the epoch before
    is what is left.
    """
    return {"truncated_checkpoint": 2 * EVERY, "flipped_byte": STEPS}.get(kind, EVERY)


class Command:
    """``ima_dist.train`` on the first host, begun or resumed."""

    def __init__(self, hosts: Hosts, run: RunDir, scratch: Path) -> None:
        self.hosts, self.run, self.scratch = hosts, run, scratch
        self._before, self._base = len(_read(scratch / "count")), last_whole(run)
        resume = ["--resume", str(run.path)] if run.config_path.exists() else []
        words = resume or ["moons", *as_flags(OPTIONS), "--out", str(run.path)]
        with (scratch / "said.txt").open("wb") as said:
            self.driver = subprocess.Popen(
                hosts.on(0, sys.executable, "-m", "ima_dist.train", *words),
                env=hosts.environment,
                cwd=ROOT,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def record(self) -> str:
        """What ``slow_network`` has written since the command was started."""
        return _read(self.scratch / "count")[self._before :]

    def reached(self) -> tuple[int, int]:
        """Training steps begun, those of the checkpoint it started from included, and passes of the margin pass
        since the last one.
        """
        record = self.record()
        return self._base + record.count("t"), len(record.rpartition("t")[2])

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """False if the run ended first."""
        until = time.monotonic() + _PATIENCE
        while not condition():
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > until:
                raise TimeoutError("the run does not get on")
            time.sleep(0.005)
        return True

    def end(self) -> int:
        """Exit status; a command that does not end is killed: 124."""
        try:
            return self.driver.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill_driver()
            return 124

    def sentence(self) -> str:
        """The last that it has said to its user."""
        lines = _read(self.scratch / "said.txt").strip().splitlines()
        said = [line for line in lines if line.startswith(("error:", "Interrupted.", "Stopped", "Results:"))]
        return (said or lines or [""])[-1].replace(str(self.run.path), "RUN")

    def warnings(self) -> list[str]:
        """What it has complained of, in a run that it has resumed."""
        lines = _read(self.scratch / "said.txt").splitlines()
        return [line.replace(str(self.run.path), "RUN") for line in lines if line.startswith("warning:")]

    def kill_driver(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def processes(self, host: int, name: str) -> list[int]:
        """Processes of a host whose title, or whose program, begins with ``name``."""
        found = []
        for pid in processes_on(self.hosts.names[host]):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                if title.split("/")[-1].startswith(name):
                    found.append(pid)
        return found

    def kill(self, host: int, name: str) -> None:
        for pid in self.processes(host, name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_workers(self) -> None:
        for host in (0, 1):
            self.kill(host, _WORKER)

    def left(self) -> int:
        """Processes of the run that are still there when they should be gone."""
        until = time.monotonic() + _GONE_AFTER
        while True:
            found = [pid for host in (0, 1) for name in (_WORKER, _CONTROLLER) for pid in self.processes(host, name)]
            if not found or time.monotonic() > until:
                return len(found)
            time.sleep(0.2)

    def newest(self, pattern: str) -> Path:
        return max(self.run.path.glob(pattern), key=lambda p: p.stat().st_mtime)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


_WORKER, _CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"


# ---- what can break. Each is called at the drawn moment; the run may go on or end.


def worker(command: Command, rng: random.Random) -> None:
    command.kill(rng.randrange(2), _WORKER)


def driver(command: Command, rng: random.Random) -> None:
    command.kill_driver()


def terminate(command: Command, rng: random.Random) -> None:
    os.killpg(command.driver.pid, signal.SIGTERM)


def raylet(command: Command, rng: random.Random) -> None:
    command.kill(1, "raylet")


def gcs(command: Command, rng: random.Random) -> None:
    command.kill(0, "gcs_server")


def cable_20_s(command: Command, rng: random.Random) -> None:
    command.hosts.cable(up=False)
    time.sleep(20)
    command.hosts.cable(up=True)


def cable(command: Command, rng: random.Random) -> None:
    command.hosts.cable(up=False)


def full_disk(command: Command, rng: random.Random) -> None:
    with (command.run.path / "filler").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()


def truncated_checkpoint(command: Command, rng: random.Random) -> None:
    command.kill_driver()
    command.kill_workers()
    file = command.newest("checkpoints/epoch=*/*.safetensors")
    os.truncate(file, rng.randrange(file.stat().st_size))


def flipped_byte(command: Command, rng: random.Random) -> None:
    command.kill_driver()
    command.kill_workers()
    file = command.newest("margins/epoch=*/shard-*.parquet")
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def in_the_write(command: Command, rng: random.Random) -> None:
    pids = [pid for host in (0, 1) for pid in command.processes(host, _WORKER)]
    rng.shuffle(pids)
    until = time.monotonic() + 60
    while not any(command.run.checkpoints_dir.glob(".writing-*")) and time.monotonic() < until:
        pass
    time.sleep(rng.random() * 0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


_ALL = (
    worker,
    driver,
    terminate,
    raylet,
    gcs,
    cable_20_s,
    cable,
    full_disk,
    truncated_checkpoint,
    flipped_byte,
    in_the_write,
)
KINDS: dict[str, Callable[[Command, random.Random], None]] = {f.__name__: f for f in _ALL}
_BREAK_THE_CLUSTER = (raylet, gcs, cable_20_s, cable)


# ---- one fault, from beginning to end

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
        outcome = _strike(command, *fault, epoch)
        _add_warnings(outcomes, command)
        if outcome is None:
            print(f"The run ended before {fault} with: {command.sentence()}", file=sys.stderr)
            break
        outcomes.append(outcome)
        if KINDS[fault[0]] in _BREAK_THE_CLUSTER:
            ground.clear()
        epoch += 1
    if outcomes and not _finished(run):
        command = Command(ground.hosts(), run, ground.directory)
        command.end()
        _add_warnings(outcomes, command)
        if not _finished(run):
            print(f"The run cannot be finished after {outcomes[-1]}: {command.sentence()}", file=sys.stderr)
    if _finished(run):
        difference = _difference(run, reference.result())
        steps = _read(ground.directory / "count").count("t")
        for outcome in outcomes:
            outcome.difference = difference
            outcome.recounted = steps == EPOCHS * STEPS + sum(o.lost for o in outcomes)
    shutil.rmtree(run.path)
    return outcomes


def _strike(command: Command, kind: str, seed: str, epoch: int) -> Outcome | None:
    """Break something in the given epoch (from 0); None if the command ends before."""
    rng = random.Random(seed)
    step, passes = rng.randrange(1, STEPS + 1), 0
    moment = f"epoch {epoch + 1}, step {step}"
    if rng.random() < 0.25:
        step, passes = STEPS, rng.randrange(1, 10)
        moment = f"epoch {epoch + 1}, margin pass"
    at = epoch * STEPS + step
    if not command.wait_for(lambda: command.reached() >= (at, passes)):
        return None
    struck = time.monotonic()
    KINDS[kind](command, rng)
    status = command.end()
    outcome = Outcome(kind, seed, moment, status, seconds=time.monotonic() - struck)
    if status >= 0:  # killed, it says nothing
        outcome.sentence = command.sentence()
    outcome.left = command.left()
    outcome.survived = _finished(command.run)
    outcome.lost = 0 if outcome.survived else command.reached()[0] - last_whole(command.run)
    (command.run.path / "filler").unlink(missing_ok=True)
    return outcome


def _add_warnings(outcomes: list[Outcome], command: Command) -> None:
    """What the command that resumes has to say about the last fault belongs to it."""
    if outcomes:
        outcomes[-1].sentence = " ".join([outcomes[-1].sentence, *command.warnings()]).strip()


def last_whole(run: RunDir) -> int:
    """Training steps that the newest undamaged checkpoint holds."""
    found = [0]
    for file in run.checkpoints_dir.glob("epoch=*/state.json"):
        state = json.loads(file.read_text())
        paths = {run.path / name: digest for name, digest in state["files"].items()}
        if all(p.exists() and hashlib.sha256(p.read_bytes()).hexdigest() == d for p, d in paths.items()):
            found.append(state["epoch"] * STEPS + state["step"])
    return max(found)


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


# ---- all of them


def table(outcomes: list[Outcome]) -> str:
    """Markdown, by kind."""
    lines = [
        "| kind | seed | moment | status | after | run | steps lost | difference | last line |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for o in sorted(outcomes, key=lambda o: list(KINDS).index(o.kind)):
        how = ("went on" if o.survived else "resumed") if o.harmless else "**HARMED**"
        lines.append(
            f"| {o.kind} | {o.seed} | {o.moment} | {o.status} | {o.seconds:.0f} s | {how} | {o.lost} | "
            f"{o.difference:.0e} | {o.sentence.replace('|', chr(92) + '|')} |"
        )
    harmless = sum(o.harmless for o in outcomes)
    kinds = len({o.kind for o in outcomes})
    return "\n".join([*lines, "", f"{len(outcomes)} faults of {kinds} kinds; {harmless} did no harm.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=44)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--side-by-side", type=int, default=1, help="runs at a time, each on hosts of its own")
    parser.add_argument("--table", type=Path, help="also write the table here, after every run")
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    kinds = arguments.kinds.split(",")
    planned = [(kinds[n % len(kinds)], f"{arguments.seed}-{n}") for n in range(arguments.faults)]
    random.Random(arguments.seed).shuffle(planned)
    outcomes: list[Outcome] = []
    lock = threading.Lock()

    def next_fault() -> Fault | None:
        with lock:
            return planned.pop() if planned else None

    def work(ground: Ground) -> None:
        if ground is grounds[0]:
            try:
                reference.set_result(undisturbed(ground))
            except Exception as error:
                reference.set_exception(error)
        while planned:
            found = drill(next_fault, reference, ground)
            with lock:
                outcomes.extend(found)
                for outcome in found:
                    print(f"{'ok' if outcome.harmless else 'HARM'} {outcome}", file=sys.stderr, flush=True)
                if arguments.table:
                    arguments.table.write_text(table(outcomes))

    with tempfile.TemporaryDirectory(prefix="faults-") as directory, contextlib.ExitStack() as stack:
        grounds = [stack.enter_context(ground_in(Path(directory) / str(n))) for n in range(arguments.side_by_side)]
        reference: Future[State] = Future()
        with ThreadPoolExecutor(len(grounds)) as pool:
            for done in [pool.submit(work, ground) for ground in grounds]:
                done.result()
    print(table(outcomes))
    return 0 if all(outcome.harmless for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks.faults [--faults N] [--seed S] [--kinds A,B] [--table FILE]``: break a run in every way.

Moons is trained on two hosts (network namespaces with a Ray node each; needs root). At a moment drawn from the
seed, in an epoch or in the margin pass after it, something is broken, and what the run makes of it is recorded.
Then it is resumed, on a new cluster if the old one was broken, until it is finished. Its margins and weights must
equal those of an undisturbed run to 1e-9 (float64), no more steps may be done again than lie between the last
whole checkpoint and the fault, and of its processes none may be left. Prints a line a fault, then all as Markdown.
Exit status 1 if a fault did harm.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load

from benchmarks.hosts import ROOT, Hosts, processes_on, two_hosts, why_not
from ima_dist.margins import MarginStore
from ima_dist.results.rundir import RunDir

EPOCHS, STEPS, EVERY = 4, 20, 5
_OPTIONS = (
    f"--data.subset 1000 --batch-size 50 --epochs {EPOCHS} --checkpoint-every {EVERY} --dtype float64 --workers 2 "
    "--optimizer.lr 0.01 --eval.attacks worst --eval.steps 2 --eval.noise 0,0.1 "
    "--model.factory benchmarks.slow_network:build"
).split()
_PATIENCE = 400.0  # seconds for a run to end, or to reach the moment of the fault
_GONE_AFTER = 60.0  # seconds that the workers of a run may outlive its command
_TRIES = 3
_LARGEST_DIFFERENCE = 1e-9


@dataclass
class Outcome:
    """What a fault led to.

    moment: where it struck. status, sentence: exit status of the disturbed command (negative: a signal) and the
    last that it said. seconds: from the fault to its end. resumes: how often the run was then resumed. repeated:
    training steps done more than once. since: steps done since the last checkpoint that the fault left whole.
    left: processes of the run that did not end with it. difference: from the undisturbed run.
    """

    kind: str
    seed: str
    moment: str
    status: int
    sentence: str
    seconds: float
    resumes: int
    repeated: int
    since: int
    left: int
    difference: float

    @property
    def harmless(self) -> bool:
        return self.difference < _LARGEST_DIFFERENCE and self.repeated <= self.since and not self.left


class Drill:
    """One disturbed run: its hosts, its driver, its directory."""

    def __init__(self, hosts: Hosts, run: RunDir, scratch: Path) -> None:
        self.hosts, self.run, self.scratch = hosts, run, scratch
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        resume = ["--resume", str(self.run.path)] if self.run.config_path.exists() else []
        words = resume or ["moons", *_OPTIONS, "--out", str(self.run.path)]
        with (self.scratch / "err.txt").open("wb") as err:
            self.driver = subprocess.Popen(
                self.hosts.on(0, sys.executable, "-m", "ima_dist.train", *words),
                env=self.hosts.environment,
                cwd=ROOT,
                stdout=err,
                stderr=err,
                start_new_session=True,
            )

    def count(self) -> str:
        """The record of ``slow_network``."""
        try:
            return Path(self.hosts.environment["FAULTS_COUNT"]).read_text()
        except FileNotFoundError:
            return ""

    def steps(self) -> int:
        return self.count().count("t")

    def passes(self) -> int:
        """Passes of the margin pass since the last training step."""
        return len(self.count().rpartition("t")[2])

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """False if the run ended first."""
        assert self.driver is not None
        until = time.monotonic() + _PATIENCE
        while not condition():
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > until:
                raise TimeoutError("the run does not get on")
            time.sleep(0.005)
        return True

    def end(self) -> tuple[int, str]:
        """Exit status and last sentence; a run that does not end is killed: status 124."""
        assert self.driver is not None
        try:
            status = self.driver.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill_driver()
            status = 124
        return status, self.sentence()

    def sentence(self) -> str:
        lines = (self.scratch / "err.txt").read_text(errors="replace").strip().splitlines()
        said = [line for line in lines if line.startswith(("error:", "Interrupted.", "Stopped"))]
        return (said or lines or [""])[-1].replace(str(self.run.path), "RUN")

    def kill_driver(self) -> None:
        assert self.driver is not None
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
        assert self.driver is not None
        until = time.monotonic() + _GONE_AFTER
        while True:
            found = [pid for host in (0, 1) for name in (_WORKER, _CONTROLLER) for pid in self.processes(host, name)]
            if not found or time.monotonic() > until:
                return len(found)
            time.sleep(0.2)

    def newest(self, pattern: str) -> Path:
        return max(self.run.path.glob(pattern), key=lambda p: p.stat().st_mtime)


_WORKER, _CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"


# ---- what can break. Each is called at the drawn moment; the run may go on or end.


def worker(drill: Drill, rng: random.Random) -> None:
    drill.kill(rng.randrange(2), _WORKER)


def driver(drill: Drill, rng: random.Random) -> None:
    drill.kill_driver()


def terminate(drill: Drill, rng: random.Random) -> None:
    assert drill.driver is not None
    os.killpg(drill.driver.pid, signal.SIGTERM)


def raylet(drill: Drill, rng: random.Random) -> None:
    drill.kill(1, "raylet")


def gcs(drill: Drill, rng: random.Random) -> None:
    drill.kill(0, "gcs_server")


def cable_20_s(drill: Drill, rng: random.Random) -> None:
    drill.hosts.cable(up=False)
    time.sleep(20)
    drill.hosts.cable(up=True)


def cable(drill: Drill, rng: random.Random) -> None:
    drill.hosts.cable(up=False)


def full_disk(drill: Drill, rng: random.Random) -> None:
    with (drill.run.path / "filler").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
            file.flush()


def truncated_checkpoint(drill: Drill, rng: random.Random) -> None:
    drill.kill_driver()
    drill.kill_workers()
    file = drill.newest("checkpoints/epoch=*/*.safetensors")
    os.truncate(file, rng.randrange(file.stat().st_size))


def flipped_byte(drill: Drill, rng: random.Random) -> None:
    drill.kill_driver()
    drill.kill_workers()
    file = drill.newest("margins/epoch=*/shard-*.parquet")
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def in_the_write(drill: Drill, rng: random.Random) -> None:
    pids = [pid for host in (0, 1) for pid in drill.processes(host, _WORKER)]
    rng.shuffle(pids)
    until = time.monotonic() + 60
    while not any(drill.run.checkpoints_dir.glob(".writing-*")) and time.monotonic() < until:
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
KINDS: dict[str, Callable[[Drill, random.Random], None]] = {f.__name__: f for f in _ALL}
_BREAK_THE_CLUSTER = (raylet, gcs, cable_20_s, cable)


# ---- one fault, from beginning to end

State = tuple[dict[str, torch.Tensor], torch.Tensor]


class Ground:
    """Two hosts, made when they are needed and kept until something has broken them. For one thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = contextlib.ExitStack()
        self._hosts: Hosts | None = None

    def hosts(self) -> Hosts:
        if self._hosts is None:
            self._hosts = self._stack.enter_context(
                two_hosts(self.directory, FAULTS_COUNT=str(self.directory / "count"))
            )
        return self._hosts

    def clear(self) -> None:
        self._hosts = None
        self._stack.close()


def drill(kind: str, seed: str, reference: State, ground: Ground) -> Outcome:
    rng = random.Random(seed)
    # Not before the first epoch's margins are there where they are what breaks.
    at = rng.randrange(STEPS + 1 if kind == "flipped_byte" else 2, EPOCHS * STEPS - 1)
    passes = 0
    if rng.random() < 0.25:  # in the margin pass of that epoch
        at, passes = -(-at // STEPS) * STEPS, rng.randrange(1, 10)
    with _small_disk(ground.directory) as disk:
        run = RunDir(disk / "run")
        (ground.directory / "count").unlink(missing_ok=True)
        broken = Drill(ground.hosts(), run, ground.directory)
        broken.start()
        # A step that has begun is counted: the fault strikes in it.
        if not broken.wait_for(lambda: broken.steps() >= at and (broken.passes() >= passes or broken.steps() > at)):
            raise RuntimeError(f"the run ended before its fault: {broken.sentence()}")
        struck = time.monotonic()
        KINDS[kind](broken, rng)
        status, sentence = broken.end()
        seconds = time.monotonic() - struck
        if KINDS[kind] in _BREAK_THE_CLUSTER and not _finished(run):
            # What still lives on the hosts would outlive a real cut too; what it writes must do no harm.
            left = broken.left() if status else 0
            ground.clear()
        else:
            left = broken.left()
        since = broken.steps() - _last_whole(run) if not _finished(run) else 0
        (run.path / "filler").unlink(missing_ok=True)
        resumes = 0
        while not _finished(run) and resumes < _TRIES:
            resumes += 1
            again = Drill(ground.hosts(), run, ground.directory)
            again.start()
            again.end()
            left += again.left()
        if KINDS[kind] in _BREAK_THE_CLUSTER and not resumes:
            ground.clear()
        difference = _difference(run, reference) if _finished(run) else float("inf")
        repeated = broken.steps() - EPOCHS * STEPS
    where = f"epoch {(at - 1) // STEPS + 1}, " + ("margin pass" if passes else f"step {(at - 1) % STEPS + 1}")
    return Outcome(kind, seed, where, status, sentence, seconds, resumes, repeated, since, left, difference)


def _last_whole(run: RunDir) -> int:
    """Training steps that the newest undamaged checkpoint holds."""
    found = [0]
    for file in run.checkpoints_dir.glob("epoch=*/state.json"):
        state = json.loads(file.read_text())
        paths = {run.path / name: digest for name, digest in state["files"].items()}
        if all(p.exists() and hashlib.sha256(p.read_bytes()).hexdigest() == d for p, d in paths.items()):
            found.append(state["epoch"] * STEPS + state["step"])
    return max(found)


@contextlib.contextmanager
def _small_disk(directory: Path) -> Iterator[Path]:
    """A file system of its own, so that it can be filled."""
    place = directory / "disk"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _finished(run: RunDir) -> bool:
    return run.config_path.exists() and run.status == "finished"


def _state(run: RunDir) -> State:
    name = f"epoch={EPOCHS:04d}"
    weights = load((run.checkpoints_dir / name / "model.safetensors").read_bytes())
    return weights, MarginStore.load(run.margins_dir / name).shard


def _difference(run: RunDir, reference: State) -> float:
    weights, margins = _state(run)
    pairs = [(weights[k], reference[0][k]) for k in reference[0]] + [(margins, reference[1])]
    return max(float((a - b).abs().max()) for a, b in pairs)


def undisturbed(ground: Ground) -> State:
    whole = Drill(ground.hosts(), RunDir(ground.directory / "undisturbed"), ground.directory)
    whole.start()
    status, sentence = whole.end()
    if status or whole.steps() != EPOCHS * STEPS:
        raise RuntimeError(f"the undisturbed run ended with status {status} after {whole.steps()} steps: {sentence}")
    return _state(whole.run)


# ---- all of them


def table(outcomes: list[Outcome]) -> str:
    """Markdown, by kind."""
    lines = [
        "| kind | seed | moment | status | after | resumed | steps repeated (since checkpoint) | difference | said |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for o in sorted(outcomes, key=lambda o: list(KINDS).index(o.kind)):
        said = o.sentence.replace("|", "\\|")
        lines.append(
            f"| {o.kind} | {o.seed} | {o.moment} | {o.status} | {o.seconds:.0f} s | {o.resumes} | "
            f"{o.repeated} ({o.since}) | {o.difference:.0e} | {said} |"
        )
    harmless = sum(o.harmless for o in outcomes)
    return "\n".join(
        [*lines, "", f"{len(outcomes)} faults of {len({o.kind for o in outcomes})} kinds, {harmless} harmless.", ""]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=44)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--side-by-side", type=int, default=1, help="drills at a time, each on hosts of its own")
    parser.add_argument("--table", type=Path, help="also write the table here, after every fault")
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    kinds = arguments.kinds.split(",")
    outcomes: list[Outcome] = []
    lock = threading.Lock()
    numbers = iter(range(arguments.faults))
    with tempfile.TemporaryDirectory(prefix="faults-") as directory, contextlib.ExitStack() as stack:
        grounds = []
        for n in range(arguments.side_by_side):
            (Path(directory) / str(n)).mkdir()
            grounds.append(Ground(Path(directory) / str(n)))
            stack.callback(grounds[-1].clear)
        reference = undisturbed(grounds[0])

        def work(ground: Ground) -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                outcome = drill(kinds[number % len(kinds)], f"{arguments.seed}-{number}", reference, ground)
                with lock:
                    outcomes.append(outcome)
                    print(f"{'ok' if outcome.harmless else 'HARM'} {outcome}", file=sys.stderr, flush=True)
                    if arguments.table:
                        arguments.table.write_text(table(outcomes))

        with ThreadPoolExecutor(len(grounds)) as pool:
            for done in [pool.submit(work, ground) for ground in grounds]:
                done.result()
    print(table(outcomes))
    return 0 if all(outcome.harmless for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

"""``python -m benchmarks.faults [--faults N] [--seed S] [--kinds A,B]``: break a run in every way, and see it end.

Moons is trained on two hosts (network namespaces with a Ray node each; needs root). At a step drawn from the
seed something is broken; what the run makes of it is recorded; then it is resumed, on a cluster made anew,
until it is finished. Margins and weights must equal those of an undisturbed run, to 1e-9 in float64, and no
more steps may be repeated than lie between two checkpoints. Prints a line a fault, and then all as JSON.
Exit status 1 if a fault did harm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load

from benchmarks.hosts import ROOT, Hosts, descendants, two_hosts, why_not
from ima_dist.margins import MarginStore
from ima_dist.results.rundir import RunDir

EPOCHS, STEPS, EVERY = 4, 20, 5
_OPTIONS = (
    f"--data.subset 1000 --batch-size 50 --epochs {EPOCHS} --checkpoint-every {EVERY} --dtype float64 --workers 2 "
    "--optimizer.lr 0.01 --eval.attacks worst --eval.steps 2 --eval.noise 0,0.1"
).split()
_PATIENCE = 400.0  # seconds for a run to end
_TRIES = 3


@dataclass
class Outcome:
    """What a fault led to.

    status, sentence: exit status of the disturbed run (negative: a signal) and its last line. resumes: how
    often it had to be resumed. repeated: steps that were done twice. difference: from the undisturbed run.
    """

    kind: str
    seed: str
    at: str
    status: int
    sentence: str
    resumes: int
    repeated: int
    difference: float

    @property
    def harmless(self) -> bool:
        return self.difference < 1e-9 and self.repeated <= 2 * EVERY


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
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    def position(self) -> int:
        """Steps done since the beginning of the training, as far as progress.json says."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(self.run.progress_path.read_text())
            if state["stage"] == "training":
                return (state["epoch"] - 1) * STEPS + state["step"]
            if state["stage"] in ("evaluation", "done"):
                return EPOCHS * STEPS
        return 0

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """False if the run ended first."""
        assert self.driver is not None
        until = time.monotonic() + _PATIENCE
        while not condition():
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > until:
                raise TimeoutError("the run does not get on")
            time.sleep(0.02)
        return True

    def end(self) -> tuple[int, str]:
        """Exit status and last sentence; a run that does not end is killed: status 124."""
        assert self.driver is not None
        try:
            status = self.driver.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill_driver()
            status = 124
        lines = (self.scratch / "err.txt").read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error:")]
        return status, (errors or lines or [""])[-1].replace(str(self.run.path), "RUN")[:200]

    def kill_driver(self) -> None:
        assert self.driver is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def processes(self, host: int, name: str) -> list[int]:
        """Ray's processes of a host whose title begins with ``name``."""
        found = []
        for pid in descendants(self.hosts.nodes[host].pid):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if title.split("/")[-1].startswith(name) or Path(title.split(" ")[0]).name.startswith(name):
                    found.append(pid)
        return found

    def kill(self, host: int, name: str) -> None:
        for pid in self.processes(host, name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def newest(self, pattern: str) -> Path:
        return max(self.run.path.glob(pattern), key=lambda p: p.stat().st_mtime)


# ---- what can break. Each is called at the drawn step; the run may go on or end.


def worker(drill: Drill, rng: random.Random) -> None:
    drill.kill(rng.randrange(2), "ray::RayTrainWorker")


def driver(drill: Drill, rng: random.Random) -> None:
    drill.kill_driver()


def terminate(drill: Drill, rng: random.Random) -> None:
    assert drill.driver is not None
    os.killpg(drill.driver.pid, signal.SIGTERM)


def raylet(drill: Drill, rng: random.Random) -> None:
    drill.kill(1, "raylet")


def head(drill: Drill, rng: random.Random) -> None:
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
    drill.kill(0, "ray::RayTrainWorker")
    drill.kill(1, "ray::RayTrainWorker")
    file = drill.newest("checkpoints/epoch=*/*.safetensors")
    os.truncate(file, file.stat().st_size // 2)


def flipped_byte(drill: Drill, rng: random.Random) -> None:
    drill.kill_driver()
    file = drill.newest("margins/epoch=*/shard-*.parquet")
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 0x40
    file.write_bytes(data)


def in_the_write(drill: Drill, rng: random.Random) -> None:
    drill.wait_for(lambda: any(drill.run.checkpoints_dir.glob(".writing-*")))
    drill.kill(0, "ray::RayTrainWorker")
    drill.kill(1, "ray::RayTrainWorker")


_ALL = (
    worker,
    driver,
    terminate,
    raylet,
    head,
    cable_20_s,
    cable,
    full_disk,
    truncated_checkpoint,
    flipped_byte,
    in_the_write,
)
KINDS: dict[str, Callable[[Drill, random.Random], None]] = {f.__name__: f for f in _ALL}


# ---- one fault, from beginning to end


def drill(kind: str, seed: str, reference: tuple[dict[str, torch.Tensor], torch.Tensor]) -> Outcome:
    rng = random.Random(seed)
    # Not before the first epoch's checkpoint where that is what breaks.
    at = rng.randrange(STEPS + 2 if kind == "flipped_byte" else 2, (EPOCHS - 1) * STEPS)
    with tempfile.TemporaryDirectory(prefix="faults-") as directory, _small_disk(Path(directory)) as disk:
        run = RunDir(disk / "run")
        with two_hosts(Path(directory)) as hosts:
            broken = Drill(hosts, run, Path(directory))
            broken.start()
            if broken.wait_for(lambda: broken.position() >= at):
                KINDS[kind](broken, rng)
            status, sentence = broken.end()
            reached = broken.position()
        (run.path / "filler").unlink(missing_ok=True)
        resumes, repeated = 0, 0
        while not _finished(run) and resumes < _TRIES:
            resumes += 1
            more, reached = _resume(run, Path(directory), reached)
            repeated += more
        difference = _difference(run, reference) if _finished(run) else float("inf")
    where = f"epoch {at // STEPS + 1}, step {at % STEPS}"
    return Outcome(kind, seed, where, status, sentence, resumes, repeated, difference)


def _resume(run: RunDir, directory: Path, reached: int) -> tuple[int, int]:
    """Resume once, on new hosts. Returns the steps that were done again, and how far the run then is."""
    with two_hosts(directory) as hosts:
        again = Drill(hosts, run, directory)
        run.progress_path.unlink(missing_ok=True)
        again.start()
        again.wait_for(lambda: again.position() > 0)
        repeated = max(0, reached - again.position())
        again.end()
        return repeated, again.position()


@contextlib.contextmanager
def _small_disk(directory: Path) -> Iterator[Path]:
    """A file system of its own, so that it can be filled."""
    place = directory / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _finished(run: RunDir) -> bool:
    return run.config_path.exists() and run.status == "finished"


def _state(run: RunDir) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    name = f"epoch={EPOCHS:04d}"
    weights = load((run.checkpoints_dir / name / "model.safetensors").read_bytes())
    return weights, MarginStore.load(run.margins_dir / name).shard


def _difference(run: RunDir, reference: tuple[dict[str, torch.Tensor], torch.Tensor]) -> float:
    weights, margins = _state(run)
    pairs = [(weights[k], reference[0][k]) for k in reference[0]] + [(margins, reference[1])]
    return max(float((a - b).abs().max()) for a, b in pairs)


def _undisturbed() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    with tempfile.TemporaryDirectory(prefix="faults-") as directory, two_hosts(Path(directory)) as hosts:
        whole = Drill(hosts, RunDir(Path(directory) / "run"), Path(directory))
        whole.start()
        status, sentence = whole.end()
        if status:
            raise RuntimeError(f"the undisturbed run ended with status {status}: {sentence}")
        return _state(whole.run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=44)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    kinds = arguments.kinds.split(",")
    reference = _undisturbed()
    outcomes = []
    for number in range(arguments.faults):
        kind = kinds[number % len(kinds)]
        outcome = drill(kind, f"{arguments.seed}-{number}", reference)
        outcomes.append(outcome)
        mark = "ok  " if outcome.harmless else "HARM"
        print(
            f"{mark} {outcome.kind:20} seed {outcome.seed:6} at {outcome.at:16} status {outcome.status:4} "
            f"resumes {outcome.resumes} repeated {outcome.repeated:2} difference {outcome.difference:.0e}  "
            f"{outcome.sentence}",
            file=sys.stderr,
            flush=True,
        )
    print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return 0 if all(outcome.harmless for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long the dashboard takes to have 500 runs of 200 epochs at hand, cold.

``python -m benchmarks.dashboard [--runs N] [--epochs N]`` makes runs in the genuine format (config.yaml, summary.json,
history.parquet and their rows of the data set), starts the dashboard in a process of its own, drops the files from
the page cache where it may, and asks for the first view, with all runs, and then for curves. Beside it stands a plain
read of the same bytes, in another process of the same machine and state.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from ima_dist.config.presets import make_config
from ima_dist.config.values import to_dict
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_text_atomic
from ima_dist.tracking.tables import write_run

_BINS = 50


def make_runs(root: Path, runs: int, epochs: int) -> None:
    """``runs`` finished runs on Fashion-MNIST: β by seed, plausible curves."""
    first: str | None = None
    for number in range(runs):
        beta, seed = round(0.05 + 0.9 * (number % 50) / 49, 4), number // 50
        config = make_config("fashion_mnist", {"beta": beta, "seed": seed, "epochs": epochs})
        run = RunDir(root / f"beta{beta:g}-seed{seed}")
        if first is None:
            run = RunDir.create(config, run.path)
            first = run.config_path.read_text(encoding="utf-8").split("versions:", 1)[1]
        else:
            tree = yaml.dump(to_dict(config), Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
            write_text_atomic(run.config_path, tree + "versions:" + first)
        run.write_history([_epoch(e, epochs, beta) for e in range(1, epochs + 1)])
        write_json(run.summary_path, _summary(config, beta, epochs))
        write_run(root, run)


def _epoch(epoch: int, epochs: int, beta: float) -> dict[str, Any]:
    share = epoch / epochs
    return {
        "epoch": epoch,
        "train_loss": math.exp(-3 * share),
        "train_accuracy": 0.95 - 0.3 * math.exp(-9 * share),
        "val_accuracy": 0.92 - 0.3 * math.exp(-9 * share) - 0.05 * beta * share,
        "noisy_samples": 30_000,
        "evaluations": 2_000_000,
        "train_seconds": 20.0,
        "margin_seconds": 15.0,
        "samples_per_second": 1500.0,
        "margin_mean": 0.3 * share * 0.6,
        "share_at_max": 0.2 * share,
        "margin_quantiles": [0.3 * share * i / 10 for i in range(11)],
        "margin_histogram": [(i * epoch) % 977 for i in range(_BINS)],
    }


def _summary(config: Any, beta: float, epochs: int) -> dict[str, Any]:
    curves = [
        {
            "attack": attack,
            "loss": loss,
            "norm": "linf",
            "noise": level,
            "split": "test",
            "accuracy": max(0.0, 0.93 - 2 * level + 0.1 * beta * level),
            "samples": 10_000,
            "steps": 100,
            "step_scale": 4.0,
            "epoch": epochs,
        }
        for attack, losses in (("pgd100", ("both", "ce", "margin")), ("worst", ("both",)))
        for loss in losses
        for level in config.eval.noise
    ]
    return {"status": "finished", "clean_accuracy": 0.93, "parameters": 3_129_482, "curves": curves}


def measure(root: Path) -> dict[str, float]:
    """Seconds, and the rows of the answers; each part in a new process, with the files out of the page cache."""
    found = {}
    _forget(root)
    code = f"from benchmarks.dashboard import plain; plain({str(root)!r})"
    found["plain"], found["megabytes"] = json.loads(_python(code))
    _forget(root)
    code = f"from benchmarks.dashboard import load; load({str(root)!r})"
    found["load"], found["cpu"] = json.loads(_python(code))
    _forget(root)
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "ima_dist.dashboard", str(root), "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        found["start"] = time.perf_counter() - began
        for name, path in (("first", "csv/runs/runs.csv"), ("curves", "csv/accuracy/accuracies.csv")):
            asked = time.perf_counter()
            with urllib.request.urlopen(address + path) as answer:
                text = answer.read().decode()
            found[name] = time.perf_counter() - asked
            found[f"{name} rows"] = text.count("\n") - 1
        process.terminate()
    return found


def plain(root: str) -> None:
    """Print the seconds that reading every byte takes which the dashboard reads, and how many megabytes they are."""
    files = [p for kind in ("runs", "curves", "history") for p in Path(root, "dataset", kind).iterdir()]
    began = time.perf_counter()
    size = sum(len(p.read_bytes()) for p in files)
    print(json.dumps([time.perf_counter() - began, size / 1e6]))


def load(root: str) -> None:
    """Print the seconds that it takes to have all runs in memory, without the imports, and those of the processor."""
    from ima_dist.tracking.collection import Collection

    runs = Collection(Path(root))
    began, used = time.perf_counter(), time.process_time()
    runs.refresh()
    print(json.dumps([time.perf_counter() - began, time.process_time() - used]))


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def _forget(root: Path) -> None:
    """Drop the files from the page cache, as after a restart of the machine."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=200)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_runs(root, options.runs, options.epochs)
        found = measure(root)
    print(
        f"{options.runs} runs of {options.epochs} epochs, {found['megabytes']:.1f} MB in the data set, nothing cached"
    )
    print(f"start of the process to its address:   {found['start']:.2f} s")
    print(f"first request to all runs:             {found['first']:.2f} s ({found['first rows']:.0f} rows)")
    print(f"then to the curves of five runs:       {found['curves']:.2f} s ({found['curves rows']:.0f} rows)")
    print(f"runs, curves and history in memory:    {found['load']:.2f} s ({found['cpu']:.2f} s of processor time)")
    print(f"plain read of the same bytes:          {found['plain']:.2f} s")
    print(f"ratio of the last two:                 {found['load'] / found['plain']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

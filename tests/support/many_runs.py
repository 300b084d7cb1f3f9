"""A results directory as a group leaves it on Monday morning: hundreds of runs in the genuine format, in seconds.

Nothing is trained: accuracies come from invented distances of the test samples to the boundary, so that outcomes,
curves and history agree with one another. ``python -m tests.support.many_runs DIR`` makes one to look at.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.config.values import to_dict
from ima_dist.evaluation import outcomes
from ima_dist.evaluation.lost_first import first_lost
from ima_dist.plans.jobfile import run_path
from ima_dist.plans.sweepfile import asked_text, read_sweep
from ima_dist.plans.trial_record import Record
from ima_dist.results.flips import read_flips
from ima_dist.rundir.curves import attack_rows
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_text_atomic
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import update
from tests.support.garments import garment
from tests.support.run_files import write_snapshot

TEST_SAMPLES = 200
_EPOCHS, _BINS = 8, 50
_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_HOUR = 3600.0
# Data set -> preset, and the options that make its runs short.
_DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "fashion_mnist": ("fashion_mnist", {"epochs": _EPOCHS}),
    "moons": ("moons", {"epochs": _EPOCHS}),
}
_METHODS = ("ima", "adv", "ce", "trades", "mma")
SWEEP = "sweeps/beta"


@dataclass(frozen=True)
class Made:
    """Names of the runs by what has become of them."""

    finished: list[str]
    running: list[str]
    failed: list[str]
    died: list[str]
    interrupted: list[str]


def make_many(root: Path, count: int = 200) -> Made:
    """``count`` runs below ``root``, and what else lies about in such a directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)  # most of the time otherwise
        return _make(root, count)


def _make(root: Path, count: int) -> Made:
    root.mkdir(parents=True, exist_ok=True)
    made = Made([], [], [], [], [])
    versions: list[str] = []
    others = ["running"] * 5 + ["failed"] * 4 + ["died"] * 3 + ["interrupted"] * 2
    _sweep(root, versions, made)
    for number in range(count - len(made.finished) - len(made.running) - len(made.failed)):
        data = "moons" if number % 3 == 0 else "fashion_mnist"
        method = _METHODS[number % len(_METHODS)]
        preset, options = _DATA[data]
        options = {**options, "method": method, "seed": number // 40, "norm": "l2" if number % 7 == 3 else "linf"}
        options |= {"beta": round(0.1 + 0.1 * (number % 8), 2)} if method == "ima" else {}
        if options["norm"] == "linf" and method in ("ima", "adv"):
            options["eps_max"] = round(0.1 + 0.05 * (number % 5), 2)
        status = others[number] if number < len(others) else "finished"
        name = f"{data}/{method}-{options['norm']}-{number:03d}"
        run = _run(root / name, make_config(preset, options), versions)
        _fill(run, status, number)
        getattr(made, status).append(name)
    _strangers(root)
    update(root)
    return made


def _run(path: Path, config: Config, versions: list[str]) -> RunDir:
    """The directory with its config.yaml; versions are looked up once."""
    if not versions:
        run = RunDir.create(config, path)
        versions.append(run.config_path.read_text(encoding="utf-8").split("versions:", 1)[1].split("fingerprint:")[0])
        return run
    path.mkdir(parents=True)
    run = RunDir(path)
    tree = yaml.dump(to_dict(config), Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    run.config_path.write_text(f"{tree}versions:{versions[0]}fingerprint: {config.fingerprint()}\n", encoding="utf-8")
    return run


def _fill(run: RunDir, status: str, number: int) -> None:
    config = run.config()
    strength = {"ima": 1.0, "adv": 0.9, "trades": 0.92, "mma": 0.85, "ce": 0.25}[config.method]
    strength *= 1 + 0.25 * np.sin(number) * (0.3 + config.beta / 2)
    finished = status == "finished"
    epochs = config.epochs if finished else 2 + number % 4
    run.write_history([_epoch(e, config, strength, number) for e in range(1, epochs + 1)])
    hours = (number * 37 % 400) / 4 if finished else number / 3
    if finished:
        _evaluate(run, config, strength, number)
        if number % 20 == 1 and config.preset == "fashion_mnist":
            _images(run, config)
    _margins(run, config, strength, epochs)
    summary = run.summary()
    messages = {
        "failed": "The loss became NaN in epoch 3 at step 118 (sample 20,417): lower --optimizer.lr, or set --clip.",
        "interrupted": "Interrupted by SIGTERM.",
    }
    said = {"status": "running" if status == "died" else status, "message": messages.get(status)}
    numbers = {"parameters": 3_129_482, "train_samples_per_second": 1500.0 + number, "wall_seconds": 900.0 + number}
    said |= {**numbers, "test_samples": TEST_SAMPLES, "data_digest": f"{config.preset}-digest"} if finished else {}
    said |= {"class_names": _CLASSES} if finished and config.preset == "fashion_mnist" else {}
    write_json(run.summary_path, {**summary, **said})
    if status in ("running", "died"):
        _lease(run, status, number)
        _progress(run, config, epochs, number)
    silent = 5 * _HOUR if status == "died" else 0.0 if status == "running" else hours * _HOUR
    then = time.time() - silent
    began = time.time() - (number + 1) * _HOUR if status == "running" else then - _HOUR
    os.utime(run.config_path, (began, began))
    for path in (run.summary_path, run.history_path, run.progress_path, run.lock_path):
        if path.exists():
            os.utime(path, (then, then))


def _lease(run: RunDir, status: str, number: int) -> None:
    host = platform.node() if status == "running" and number == 0 else f"v100-{number}"
    job = f" in job {4100 + number}, start 0" if number % 2 else ""
    process = os.getpid() if host == platform.node() else 2000 + number
    run.lock_path.write_text(f"process {process} on {host}{job} (0a1b2c{number:02d})\n")


def _progress(run: RunDir, config: Config, epochs: int, number: int) -> None:
    total = config.epochs * 55_000
    done = epochs * 55_000 + 20_000
    state = {"stage": "training", "epoch": epochs + 1, "epochs": config.epochs, "samples_done": done}
    state |= {"samples_total": total, "samples_per_second": 900.0 + number, "seconds_left": (total - done) / 900.0}
    state |= {"workers": 1 + number % 4, "updated": time.time(), "loss": 0.4, "clean_accuracy": 0.91}
    write_json(run.progress_path, state)


def _epoch(epoch: int, config: Config, strength: float, number: int) -> dict[str, Any]:
    share = epoch / config.epochs
    clean = 1 - float(_wrong_at_once(number).mean())  # in the end about that of the test set
    row = {
        "epoch": epoch,
        "train_loss": float(np.exp(-2 * share)),
        "train_accuracy": min(1.0, clean + 0.005) - 0.3 * float(np.exp(-5 * share)),
        "val_accuracy": clean - 0.4 * float(np.exp(-5 * share)),
        "train_seconds": 20.0,
        "samples_per_second": 1500.0,
        "evaluations": 2_000_000,
    }
    if config.method in ("ima", "mma"):
        counts = np.histogram(_distances(500, strength * share, config.eps_max, 0), _BINS, (0, config.eps_max))[0]
        row |= {"margin_mean": 0.6 * share * config.eps_max, "share_at_max": 0.2 * share, "margin_seconds": 15.0}
        row |= {"margin_histogram": counts.tolist(), "margin_quantiles": (share * np.linspace(0, 1, 11)).tolist()}
    return row


def _distances(count: int, strength: float, eps_max: float, seed: int) -> np.ndarray:
    """Distances to the boundary, in the order of the samples; the same samples are near it in all runs."""
    hard = np.random.default_rng(7).random(count)
    own = np.random.default_rng(seed).normal(0, 0.15, count)
    return eps_max * strength * np.clip(1.6 * hard + own, 0, None)


def _wrong_at_once(number: int) -> np.ndarray:
    """Which test samples a run takes for another class even without noise."""
    return np.random.default_rng(number).random(TEST_SAMPLES) < 0.04


def _evaluate(run: RunDir, config: Config, strength: float, number: int) -> None:
    classes = 2 if config.preset == "moons" else 10
    label = torch.arange(TEST_SAMPLES) % classes
    largest = config.eval.noise[-1]
    distance = torch.from_numpy(_distances(TEST_SAMPLES, strength, largest, number))
    other = (label + 1 + torch.arange(TEST_SAMPLES) % max(1, classes - 1)) % classes
    wrong_at_once = torch.from_numpy(_wrong_at_once(number))
    found = {
        ("both", level): torch.where((distance < level) | wrong_at_once, other, label) for level in config.eval.noise
    }
    about = {"test_samples": TEST_SAMPLES, "classes": classes}
    for attack in ("pgd100", "worst") if number % 2 else ("pgd100",):
        table = outcomes.outcomes_table(attack, found, torch.arange(TEST_SAMPLES), label, config, config.epochs)
        outcomes.save(run, table, config, about)
    clean = float((~wrong_at_once).double().mean())
    write_json(run.summary_path, {**run.summary(), "clean_accuracy": clean})


def _images(run: RunDir, config: Config) -> None:
    """The images that are lost first, and what an attack might make of them."""
    points = run.points()
    flips = read_flips(Run(run), attack_rows(points)[points[-1].attack])
    assert flips is not None
    chosen = first_lost(flips, 20)
    clean = np.stack([garment(int(flips.label[n]), n) for n in chosen])[:, None]
    noisy = np.clip(clean + np.random.default_rng(0).uniform(-0.2, 0.2, clean.shape), 0, 1)
    run.examples_dir.mkdir()
    arrays = {"index": flips.index[chosen], "label": flips.label[chosen], "noise": flips.lost[chosen], "clean": clean}
    arrays |= {"noisy": noisy, "clean_prediction": flips.label[chosen], "prediction": flips.becomes[chosen]}
    names = np.array(_CLASSES)
    np.savez_compressed(run.flips_path, **arrays, class_names=names, attack=np.array(points[-1].attack))


def _margins(run: RunDir, config: Config, strength: float, epochs: int) -> None:
    if config.method in ("ima", "mma"):
        values = np.clip(_distances(60, strength, config.eps_max, 1), config.expansion, config.eps_max)
        write_snapshot(run, epochs, values.tolist())


def _sweep(root: Path, versions: list[str], made: Made) -> None:
    """A sweep in the middle of its work: most trials have ended, one runs, one has failed, one has not begun."""
    file = root / "sweep_beta.yaml"
    lists = {"beta": [0.2, 0.4, 0.6, 0.8], "eps_max": [0.1, 0.2, 0.3]}
    asked = {"title": "β and ε_max on moons", "preset": "moons", "options": {"epochs": _EPOCHS}, "sweep": lists}
    file.write_text(yaml.safe_dump(asked, allow_unicode=True))
    sweep, place = read_sweep(file), root / SWEEP
    write_text_atomic(place / "sweep.yaml", asked_text(sweep))
    ends = {3: "running", 7: "failed"}
    for number, point in enumerate(sweep.points[:-1]):
        path, status = run_path(place, point.config), ends.get(number, "finished")
        run = _run(path, point.config, versions)
        _fill(run, status, 300 + number)
        record = Record(place, path.name)
        began = {"values": point.values, "seed": point.seed, "began": time.time() - 9000 + number}
        record.write(**began, status=status, message=run.summary().get("message"), epoch=point.epoch)
        record.output.write_text(f"epoch 1/{_EPOCHS}  step 1/157\nepoch 2/{_EPOCHS}  step 1/157\n")
        getattr(made, status).append(path.relative_to(root).as_posix())


def _strangers(root: Path) -> None:
    """What is not ours: another tool's configuration and results, and a damaged summary."""
    (root / "other-tool").mkdir()
    (root / "other-tool" / "config.yaml").write_text("server: {port: 80}\nmodel: resnet\n")
    (root / "old-results").mkdir()
    (root / "old-results" / "summary.json").write_text(json.dumps({"accuracy": 0.9}))
    half = _run(root / "half", make_config("moons", {"epochs": _EPOCHS}), [])
    half.summary_path.write_text('{"status": "fini')
    (root / "table.parquet").write_text("no Parquet")


if __name__ == "__main__":
    began = time.perf_counter()
    found = make_many(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
    print(f"{time.perf_counter() - began:.1f} s", {k: len(v) for k, v in vars(found).items()})

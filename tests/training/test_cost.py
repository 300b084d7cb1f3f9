"""What a run costs: against the clocks of the system, over several starts, and where it is shown."""

from __future__ import annotations

import gzip
import json
import re
import resource
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ima_dist import train
from ima_dist.core import distributed
from ima_dist.data import pipeline
from ima_dist.results.cost import COLUMNS, cost_numbers, cost_text, total
from ima_dist.rundir.directory import RunDir
from ima_dist.tracking import tables
from ima_dist.worker import cost
from tests.support import workers

CPU = torch.device("cpu")


def _used() -> float:
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime


def _busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_time_is_that_of_the_systems_clocks(tmp_path):
    _, run = workers.start_run(tmp_path / "run", "moons")
    spent = wall = 0.0
    for _ in range(2):
        before, began = _used(), time.perf_counter()
        with cost.counted(run, CPU):
            _busy(0.5)
            time.sleep(0.5)
            spent, wall = spent + _used() - before, wall + time.perf_counter() - began
    found = run.summary()["cost"]
    assert found["starts"] == 2
    assert found["cpu_seconds"] == pytest.approx(spent, rel=0.05)
    assert found["wall_seconds"] == found["worker_seconds"] == pytest.approx(wall, rel=0.05)
    assert found["gpu_seconds"] == 0
    assert found["gpu_joules"] is None
    assert found["peak_host_bytes"] >= 1e8  # torch is loaded
    assert found["peak_device_bytes"] == 0


def test_an_interruption_is_counted_and_a_failure_is_not(tmp_path):
    _, run = workers.start_run(tmp_path / "run", "moons")
    with pytest.raises(distributed.Interrupted), cost.counted(run, CPU):
        raise distributed.Interrupted("asked to")
    with pytest.raises(KeyError), cost.counted(run, CPU):
        raise KeyError("a mistake")
    assert run.summary()["cost"]["starts"] == 1


def _both_work(path: Path) -> None:
    with cost.counted(RunDir(path), CPU):
        _busy(0.3)


def test_workers_are_added(tmp_path):
    _, run = workers.start_run(tmp_path / "run", "moons")
    workers.run_on(2, _both_work, run.path)
    found = run.summary()["cost"]
    assert found["cpu_seconds"] >= 0.6
    assert found["wall_seconds"] < found["worker_seconds"] <= 2 * found["wall_seconds"]


def test_a_counter_of_energy_that_starts_again(tmp_path, monkeypatch):
    for number in (0, 1):
        package = tmp_path / f"intel-rapl:{number}"
        package.mkdir()
        (package / "energy_uj").write_text("9000000\n")
        (package / "max_energy_range_uj").write_text("10000000\n")
    part = tmp_path / "intel-rapl:0:0"  # the memory of a processor, which its own counter includes
    part.mkdir()
    (part / "energy_uj").write_text("0\n")
    monkeypatch.setattr(cost, "RAPL", tmp_path)
    meter = cost._Meter(CPU)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000\n")  # 1 J to the end of its range, and 2 J
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("9500000\n")
    assert meter.end()["cpu_joules"] == pytest.approx(3.5)
    meter.stop()


def test_waiting_for_samples(monkeypatch):
    class Slow:
        """Two samples, of which each takes a tenth of a second."""

        bytes_each, dtype = 1 << 20, torch.uint8

        def empty(self, count: int, pin: bool) -> torch.Tensor:
            return torch.empty(count, 1, dtype=torch.uint8)

        def fetch_into(self, part: torch.Tensor, out: torch.Tensor) -> None:
            time.sleep(0.1 * len(part))

    before = pipeline.seconds_waited()
    for _ in pipeline.stream(Slow(), torch.arange(4).split(2)):  # type: ignore[arg-type]
        pass
    assert pipeline.seconds_waited() - before > 0.09


def test_it_is_shown_where_results_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data.subset", "40", "--epochs", "1", "--attack.steps", "1", "--eval.steps", "1", "--eval.noise", "0"]
    assert train.main(["moons", "--local", *words, "--eval.samples", "5", "--out", "runs/a"]) == 0
    assert re.search(r"^Cost: [\d.e-]+ CPU-hours, [\d.]+ GB of memory per worker\.$", capsys.readouterr().out, re.M)
    (row,) = pq.read_table(tables.file_of(Path("runs").absolute(), "runs", "a")).to_pylist()
    assert {name: row[name] for name in COLUMNS} == cost_numbers(RunDir("runs/a").summary()["cost"])
    assert row["cpu_hours"] > 0


@pytest.mark.parametrize(("steps", "recorded"), [(2, 2), (50, 8)])  # the last one is what follows the training
def test_a_profile_of_some_steps_changes_nothing(steps, recorded, tmp_path):
    options = {"data__subset": 80, "epochs": 2, "batch_size": 16, "method": "ce"}  # ten steps
    plain, run = workers.start_run(tmp_path / "plain", "moons", **options)
    workers.train(plain, run.path)
    config, run = workers.start_run(tmp_path / "profiled", "moons", **options, profile=steps)
    workers.train(config, run.path)
    assert config.fingerprint() == plain.fingerprint()
    states = [workers.final_state(plain, tmp_path / name)[0] for name in ("plain", "profiled")]
    assert workers.largest_difference(*states) == 0
    assert "aten::addmm" in (run.profile_dir / "table.txt").read_text()
    with gzip.open(run.profile_dir / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert len({e["name"] for e in events if e.get("name", "").startswith("ProfilerStep")}) == recorded


def test_a_profile_of_an_interrupted_training_is_written_and_ends(tmp_path):
    options = {"data__subset": 80, "epochs": 2, "batch_size": 16, "method": "ce", "profile": 50}
    config, run = workers.start_run(tmp_path / "run", "moons", **options)
    workers.train(config, run.path, stop_after=5)  # of the steps, two are recorded by then
    assert "aten::addmm" in (run.profile_dir / "table.txt").read_text()
    assert not torch.autograd._profiler_enabled()
    workers.train(config, run.path)
    assert len(run.read_history()) == 2


def test_the_words():
    whole = {
        "gpu_seconds": 7200.0, "cpu_seconds": 9000.0, "gpu_joules": 3.6e6, "cpu_joules": 1.8e6, "gpu_busy": 3600.0,
        "peak_device_bytes": 4 * 10**9, "peak_host_bytes": 2 * 10**9, "waiting_seconds": 72.0, "worker_seconds": 7200.0,
    }  # fmt: skip
    numbers = cost_numbers(whole)
    assert cost_text(numbers) == (
        "2 GPU-hours, 2.5 CPU-hours, 1.5 kWh, cards at work 50 %, at most 4 GB of a card, 2 GB of memory per worker, "
        "1 % waiting for data"
    )
    assert cost_text(cost_numbers(None)) == ""
    assert total([numbers, cost_numbers(None), numbers]) == {"gpu_hours": 4.0, "cpu_hours": 5.0, "energy_kwh": 3.0}

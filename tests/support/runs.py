"""What tests read from a run directory."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import yaml

from ima_dist.rundir.directory import RunDir


def pgd100_accuracies(run: RunDir) -> list[float]:
    curve = [c for c in run.summary()["curves"] if (c["attack"], c["loss"]) == ("pgd100", "both")]
    return [c["accuracy"] for c in sorted(curve, key=lambda c: c["noise"])]


def check_files(run: RunDir, epochs: int, samples: int) -> None:
    """Every file of a run directory is there and agrees with the others."""
    summary = run.summary()
    assert summary["status"] == "finished"
    assert yaml.safe_load(run.config_path.read_text())["versions"]["torch"]
    assert [row["epoch"] for row in run.read_history()] == list(range(1, epochs + 1))
    outcomes = pq.read_table(run.outcomes_path).to_pandas()
    for curve in summary["curves"]:
        rows = outcomes[
            (outcomes.attack == curve["attack"]) & (outcomes.loss == curve["loss"]) & (outcomes.noise == curve["noise"])
        ]
        if curve.get("order", "first") == "first":
            assert sorted(rows["index"]) == list(range(samples))
        assert len(set(rows["index"])) == len(rows) == samples
        assert curve["samples"] == samples
        assert curve["accuracy"] == pytest.approx((rows.label == rows.prediction).mean())
    weights = sorted(p.parent.name for p in run.checkpoints_dir.glob("*/model.safetensors"))
    assert weights == [f"epoch={e:04d}" for e in range(1, epochs + 1)]
    assert (run.figures_dir / "accuracy.png").exists()
    leftovers = [p.name for p in run.path.rglob("*") if p.name.startswith(".") or p.name == "stop-requested"]
    assert leftovers == []

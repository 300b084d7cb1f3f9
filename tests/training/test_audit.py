"""Margins against an attack that looks for the nearest boundary."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from ima_dist import audit as command
from ima_dist import train
from ima_dist.config.presets import make_config
from ima_dist.core import noise
from ima_dist.data.types import Resident, Split
from ima_dist.evaluation.margin_audit import audit, boundary_distance, keep, to_audit, weaker_path
from ima_dist.results.margin_audit import summarise
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet
from tests.support import workers
from tests.support.inline import without_ray
from tests.support.networks import linear


def sought(network, x, y, norm="linf", box=None):
    keys = noise.sample_keys(0, 1, noise.Phase.EVALUATE, torch.arange(len(x)))
    return boundary_distance(network, x, y, keys, make_config("moons", {"norm": norm}), box)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("classes", "shape"), [(10, (1, 4, 4)), (2, (2,))])
def test_it_finds_the_distance_to_a_linear_boundary(classes, shape, norm):
    network, x, y, distances = linear(classes, shape)
    box = (0.0, 1.0) if len(shape) == 3 else None
    found = sought(network, x, y, norm, box)
    near = distances[norm] < 0.25  # further away the box is in the way
    assert near.sum() > 10
    torch.testing.assert_close(found[near], distances[norm][near], rtol=0.03, atol=1e-4)
    assert (found[near] >= distances[norm][near] * (1 - 1e-5)).all()
    assert (sought(network, x, (y + 1) % classes, norm, box) == 0).all()


def _linear_setting():
    network, x, y, distances = linear(2, (2,), samples=60)
    train_set = Resident(Split(x, y), "cpu", torch.float32, None)
    margins = pa.table({"index": range(60), "margin": (2 * distances["linf"]).numpy()})
    return network, train_set, margins, distances["linf"]


def _audit(path):
    network, train_set, margins, _ = _linear_setting()
    config = make_config("moons")
    table = audit(
        network,
        train_set,
        margins,
        config,
        epoch=1,
        samples=to_audit(Split(train_set.x, train_set.y), 41, config),
        augment=None,
        batch_size=7,
    )
    pq.write_table(table, path / f"{torch.distributed.get_rank() if torch.distributed.is_initialized() else 'one'}")


def test_any_number_of_workers_looks_at_the_same_samples_once(tmp_path):
    workers.run_on(2, _audit, tmp_path)
    _audit(tmp_path)
    one, first, second = (pq.ParquetFile(tmp_path / name).read() for name in ("one", "0", "1"))
    assert first.equals(second)
    assert one.drop_columns("distance").equals(first.drop_columns("distance"))
    assert one["distance"].to_pylist() == pytest.approx(first["distance"].to_pylist(), rel=1e-5)
    index = one["index"].to_pylist()
    assert len(set(index)) == 41
    assert index == sorted(index)
    _, _, _, distance = _linear_setting()
    torch.testing.assert_close(torch.tensor(one["distance"].to_numpy()).float(), distance[index], rtol=0.03, atol=1e-4)
    # Every margin is twice the distance.
    summary = summarise(one, eps_max=10.0)
    assert (summary.over, summary.samples, summary.correct) == (1.0, 41, 41)
    assert summary.median_ratio == pytest.approx(2, rel=0.03)
    assert summary.mean_excess == pytest.approx(summary.mean_distance, rel=0.03)


def test_wrong_samples_and_the_tolerance_do_not_count():
    table = pa.table(
        {
            "margin": [0.1, 0.104, 0.2, 0.3, 0.3],
            "distance": [0.1, 0.1, 0.1, 0.0, 0.9],
            "correct": [True, True, True, False, True],
        }
    )
    summary = summarise(table, eps_max=0.3)
    assert (summary.samples, summary.correct, summary.over) == (5, 4, 0.25)
    assert summary.mean_excess == pytest.approx(0.1)
    assert summary.mean_distance == pytest.approx(0.15)  # 0.9 counts as 0.3
    with pytest.raises(ValueError, match="no sample"):
        summarise(table.slice(3, 1), eps_max=0.3)


@pytest.fixture(scope="module", autouse=True)
def unrendered_figures():
    """Not here: the audit's is looked at."""


def test_the_command_on_a_run(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    small = ["--data.subset", "400", "--epochs", "3", "--eval.steps", "2", "--device", "cpu", "--optimizer.lr", "0.01"]
    for method in ("ima", "ce"):
        assert train.main(["moons", "--method", method, *small, "--out", str(tmp_path / method)]) == 0
    capsys.readouterr()
    assert command.main([str(tmp_path / "ima"), "--samples", "50", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "(of 50 drawn) after epoch 3" in out
    run = RunDir(tmp_path / "ima")
    found = pq.ParquetFile(run.audit_path).read().to_pydict()
    assert (run.figures_dir / "audit.png").stat().st_size > 1000
    newest = run.newest_margins()[1].sort_by("index")
    assert found["margin"] == pytest.approx(newest["margin"].to_numpy()[found["index"]])
    assert found["label"] == newest["label"].to_numpy()[found["index"]].tolist()

    # A weaker one leaves the picture and the stronger one alone, and is kept beside it.
    before = (run.figures_dir / "audit.png").read_bytes()
    assert command.main([str(tmp_path / "ima"), "--samples", "5", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "(of 5 drawn) after epoch 3" in out
    assert "Figures show the audit of more samples in" in out
    assert pq.ParquetFile(run.audit_path).read().to_pydict() == found
    assert (run.figures_dir / "audit.png").read_bytes() == before
    assert command.main([str(tmp_path / "ima"), "--show-config"]) == 0
    assert "--attack.steps" in capsys.readouterr().out

    assert command.main([str(tmp_path / "ce"), "--device", "cpu"]) == 2
    assert "has no margins" in capsys.readouterr().err
    assert command.main([str(tmp_path / "ima"), "--samples", "0"]) == 2
    assert "--samples must be at least 1" in capsys.readouterr().err


def test_audits_are_kept_and_the_strongest_is_shown(tmp_path):
    run = RunDir(tmp_path)

    def audited(epoch: int, samples: int, margin: float = 0.1) -> None:
        keep(run, pa.table({"margin": [margin] * samples, "epoch": [epoch] * samples}))

    def shown() -> tuple[int, int, float]:
        table = read_parquet(run.audit_path)
        return table["epoch"][0].as_py(), table.num_rows, table["margin"][0].as_py()

    def kept() -> list[str]:
        return sorted(path.name for path in run.audits_dir.glob("*"))

    audited(1, 5)
    audited(1, 50)
    assert (shown(), kept()) == ((1, 50, 0.1), ["epoch=0001-samples=5.parquet"])
    audited(1, 5, margin=0.2)
    audited(1, 50, margin=0.3)
    assert (shown(), kept()) == ((1, 50, 0.3), ["epoch=0001-samples=5.parquet"])
    assert read_parquet(weaker_path(run, 1, 5))["margin"][0].as_py() == 0.2
    audited(2, 5)
    audited(1, 60)
    assert shown() == (2, 5, 0.1)
    assert kept() == [f"epoch=0001-samples={n}.parquet" for n in (5, 50, 60)]
    audited(2, 50)
    assert shown() == (2, 50, 0.1)
    run.audit_path.write_bytes(b"damaged")
    audited(2, 3)
    assert shown() == (2, 3, 0.1)


def test_batch_norm_is_left_in_peace():
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    x = torch.randn(10, 2)
    network.train()
    sought(network, x, torch.zeros(10, dtype=torch.int64))
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())

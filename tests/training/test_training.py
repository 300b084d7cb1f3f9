"""The engine without Ray: the same answer on any number of workers, and after any interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ima_dist.config.values import with_options
from ima_dist.core import distributed
from ima_dist.core.noise import Phase
from ima_dist.data.load import load
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from ima_dist.training import checkpoint
from ima_dist.training.aside import clear_unfinished
from ima_dist.training.loop import Training
from ima_dist.training.numerics import NumericalError
from ima_dist.training.state import Position
from tests.support import workers

SMALL_MOONS = {"data__subset": 500, "epochs": 3, "batch_size": 64, "dtype": "float64"}
SMALL_FASHION = {"data__subset": 120, "epochs": 3, "batch_size": 32, "dtype": "float64", "attack__steps": 5}


def train_whole(path: Path, preset: str, count: int, **options):
    config, _ = workers.start_run(path, preset, **options)
    workers.run_on(count, workers.train, config, path)
    return config, *workers.final_state(config, path)


@pytest.mark.parametrize(("rule", "norm"), [("journal", "l2"), ("ame", "linf")])
def test_margin_rules_are_equal_on_one_and_two_workers_and_after_an_interruption(tmp_path, rule, norm):
    # The last batch of an epoch has one sample, so that one of the workers has none.
    options = {**SMALL_MOONS, "data__subset": 257, "norm": norm, "margin_rule": rule, "batch_size": 32}
    config, weights, margins = train_whole(tmp_path / "one", "moons", 1, **options)
    _, weights_2, margins_2 = train_whole(tmp_path / "two", "moons", 2, **options)
    broken = tmp_path / "broken"
    workers.start_run(broken, "moons", **options)
    workers.run_on(2, workers.train, config, broken, 13)  # within the second epoch
    assert any("-step=" in p.name for p in (broken / "checkpoints").iterdir())
    workers.run_on(1, workers.train, config, broken)
    weights_3, margins_3 = workers.final_state(config, broken)
    for other_weights, other_margins in ((weights_2, margins_2), (weights_3, margins_3)):
        assert workers.largest_difference(weights, other_weights) < 1e-9
        assert float((margins - other_margins).abs().max()) < 1e-9
    assert len(margins.unique()) > 3
    histories = [RunDir(tmp_path / name).read_history() for name in ("one", "two", "broken")]
    for one, two, three in zip(*histories, strict=True):
        assert (one["share_at_max"] is None) == (rule == "ame")
        assert one["margin_histogram"] == two["margin_histogram"] == three["margin_histogram"]
        assert sum(one["margin_histogram"]) == 257
        assert one["evaluations"] == two["evaluations"] == three["evaluations"]


def test_attacked_validation_samples_are_counted_and_change_nothing(tmp_path):
    options = {**SMALL_MOONS, "eval__val_noise": 0.2, "eval__val_steps": 3, "eval__val_samples": 35}
    config, weights_1, margins_1 = train_whole(tmp_path / "one", "moons", 1, **options)
    _, weights_2, _ = train_whole(tmp_path / "two", "moons", 2, **options)
    plain, weights_3, margins_3 = train_whole(tmp_path / "plain", "moons", 1, **SMALL_MOONS)
    assert config.fingerprint() == plain.fingerprint()
    assert workers.largest_difference(weights_1, weights_3) == 0
    assert float((margins_1 - margins_3).abs().max()) == 0
    assert workers.largest_difference(weights_1, weights_2) < 1e-9
    histories = [RunDir(tmp_path / name).read_history() for name in ("one", "two", "plain")]
    for one, two, without in zip(*histories, strict=True):
        assert one["val_robust_accuracy"] == two["val_robust_accuracy"]
        assert (one["val_robust_accuracy"] * 35) == pytest.approx(round(one["val_robust_accuracy"] * 35))
        assert 0.2 < one["val_robust_accuracy"] < one["val_accuracy"]
        assert without.get("val_robust_accuracy") is None


def test_a_last_batch_smaller_than_the_workers_changes_nothing(tmp_path):
    # 65 samples in batches of 64: worker 0 or 1 has nothing to do in the second step.
    options = {**SMALL_MOONS, "data__subset": 65, "margin_update": "online"}
    _, weights_1, margins_1 = train_whole(tmp_path / "one", "moons", 1, **options)
    _, weights_2, margins_2 = train_whole(tmp_path / "two", "moons", 2, **options)
    assert workers.largest_difference(weights_1, weights_2) < 1e-9
    assert float((margins_1 - margins_2).abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("margin_update", "stop_after", "counts"),
    [
        ("epoch", 3, (1, 1)),  # within the first epoch
        ("epoch", 13, (2, 1)),  # within the second, which has 8 steps and one report at each end
        ("online", 5, (1, 2)),
        ("online", 12, (2, 2)),
    ],
)
def test_interrupted_and_resumed_equals_undisturbed(tmp_path, margin_update, stop_after, counts):
    options = {**SMALL_MOONS, "margin_update": margin_update}
    config, weights, margins = train_whole(tmp_path / "whole", "moons", 1, **options)
    path = tmp_path / "broken"
    workers.start_run(path, "moons", **options)
    workers.run_on(counts[0], workers.train, config, path, stop_after)
    assert any("-step=" in p.name for p in (path / "checkpoints").iterdir())
    workers.run_on(counts[1], workers.train, config, path)
    weights_2, margins_2 = workers.final_state(config, path)
    assert workers.largest_difference(weights, weights_2) < 1e-9
    assert float((margins - margins_2).abs().max()) < 1e-9
    assert [row["epoch"] for row in RunDir(path).read_history()] == [1, 2, 3]
    whole, broken = RunDir(tmp_path / "whole").read_history(), RunDir(path).read_history()
    for a, b in zip(whole, broken, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-9)
        assert (a["evaluations"], a["noisy_samples"]) == (b["evaluations"], b["noisy_samples"])


@pytest.mark.parametrize("margin_update", ["epoch", "online"])
def test_killed_between_two_checkpoints_costs_the_steps_between_them(tmp_path, monkeypatch, margin_update):
    options = {**SMALL_MOONS, "margin_update": margin_update}
    config, weights, margins = train_whole(tmp_path / "whole", "moons", 1, **options)
    every, path, done = with_options(config, {"checkpoint_every": 3}), tmp_path / "broken", []
    workers.start_run(path, "moons", **options)
    step = Training._step

    def dying(self, *given):
        if len(done) == 8 + 7:  # in the second epoch, which has 8 steps
            raise RuntimeError("killed")
        done.append((self.state.position.epoch, self.state.position.step))
        step(self, *given)

    monkeypatch.setattr(Training, "_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        workers.train(every, path)
    names = sorted(p.name for p in (path / "checkpoints").iterdir())
    assert names == ["epoch=0000-step=000006", "epoch=0001", "epoch=0001-step=000003", "epoch=0001-step=000006"]
    before, done = done, []
    workers.train(every, path)
    assert (before[-1], done[0], len(done)) == ((1, 6), (1, 6), 2 + 8)
    weights_2, margins_2 = workers.final_state(config, path)
    assert workers.largest_difference(weights, weights_2) == 0
    assert torch.equal(margins, margins_2)
    assert [p.name for p in (path / "checkpoints").iterdir() if "-step=" in p.name] == []


@pytest.mark.parametrize(
    ("every", "steps", "damaged", "first"),
    [
        (3, 8 + 7, "checkpoints/epoch=0001-step=000006/model.safetensors", (1, 3)),
        (4, 8 + 8 + 2, "checkpoints/epoch=0002/model.safetensors", (2, 0)),  # the margin pass alone is done again
        (3, 8 + 7, "margins/epoch=0001/shard-0000-of-0001.parquet", (0, 6)),  # needed by all of the second epoch
    ],
)
def test_damage_to_the_newest_checkpoint_costs_what_was_done_since_the_one_before(
    tmp_path, monkeypatch, every, steps, damaged, first
):
    config, weights, margins = train_whole(tmp_path / "whole", "moons", 1, **SMALL_MOONS)
    often, path, done = with_options(config, {"checkpoint_every": every}), tmp_path / "broken", []
    workers.start_run(path, "moons", **SMALL_MOONS)
    step = Training._step

    def dying(self, *given):
        if len(done) == steps:
            raise RuntimeError("killed")
        done.append((self.state.position.epoch, self.state.position.step))
        step(self, *given)

    monkeypatch.setattr(Training, "_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        workers.train(often, path)
    with (path / damaged).open("r+b") as file:
        file.truncate(100)
    done, steps = [], None
    workers.train(often, path)
    assert done[0] == first
    weights_2, margins_2 = workers.final_state(config, path)
    assert workers.largest_difference(weights, weights_2) == 0
    assert torch.equal(margins, margins_2)


def test_interrupted_within_the_margin_pass(tmp_path, monkeypatch):
    options = {**SMALL_MOONS, "batch_size": 16}
    monkeypatch.setattr("ima_dist.training.loop.attack_batch_size", lambda *_: 50)
    config, weights, margins = train_whole(tmp_path / "whole", "moons", 1, **options)
    path = tmp_path / "broken"
    workers.start_run(path, "moons", **options)
    workers.train(config, path, stop_after=32 + 4)  # 32 steps, then the fourth turn of the pass
    (partial,) = (p for p in (path / "checkpoints").iterdir() if "-step=" in p.name)
    assert partial.name == "epoch=0000-step=000032"
    from safetensors.torch import load_file

    assert len(load_file(partial / "pending-0000-of-0001.safetensors")["indices"]) == 4 * 50
    workers.train(config, path)
    weights_2, margins_2 = workers.final_state(config, path)
    assert workers.largest_difference(weights, weights_2) == 0
    assert torch.equal(margins, margins_2)


def test_steps_and_margin_pass_visit_every_sample_once_per_epoch(tmp_path, monkeypatch):
    config, run = workers.start_run(tmp_path / "run", "moons", **{**SMALL_MOONS, "epochs": 2})
    seen: dict[Phase, list[torch.Tensor]] = {Phase.TRAIN: [], Phase.MARGIN: []}
    training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
    inner = training._batch

    def watched(taken, margins, phase):
        seen[phase].append(taken.indices)
        return inner(taken, margins, phase)

    monkeypatch.setattr(training, "_batch", watched)
    training.fit()
    for visited in seen.values():
        assert torch.equal(torch.cat(visited).sort().values, torch.arange(500).repeat_interleave(2))


def test_nan_stops_at_once_and_keeps_the_last_checkpoint(tmp_path):
    config, run = workers.start_run(
        tmp_path / "run", "moons", model__factory="tests.support.user_code:turns_nan", method="ce", **SMALL_MOONS
    )
    training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
    with pytest.raises(NumericalError, match=r"epoch 2, step 3 \(worker 0: samples \d+") as caught:
        training.fit()
    assert "\n" not in str(caught.value)
    assert [p.name for p in run.checkpoints_dir.iterdir()] == ["epoch=0001"]


@pytest.mark.parametrize("victim", ["model.safetensors", "optimizer.safetensors", "state.json", "margins"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, victim, damage):
    options = {**SMALL_MOONS, "data__subset": 100}
    config, weights, margins = train_whole(tmp_path / "run", "moons", 1, **options)
    run = RunDir(tmp_path / "run")
    if victim == "margins":
        (file,) = (run.margins_dir / "epoch=0003").glob("shard-*")
    else:
        file = run.checkpoints_dir / "epoch=0003" / victim
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "truncate":
        file.write_bytes(content[:middle])
    elif damage == "flip":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        file.unlink()
    data = load(config.data, config.seed)
    training = Training(config, run, data, torch.device("cpu"))
    training.begin()
    assert training.state.position.epoch == 2
    assert len(training.warnings) == 1
    assert str(file) in training.warnings[0]
    assert training.warnings[0].endswith("; continuing from epoch=0002.")
    Training(config, run, data, torch.device("cpu")).fit()
    assert read_json(run.progress_path)["warnings"] == training.warnings
    weights_2, margins_2 = workers.final_state(config, run.path)
    assert workers.largest_difference(weights, weights_2) == 0
    assert torch.equal(margins, margins_2)


def test_optimizer_states_are_pruned_and_all_weights_kept(tmp_path):
    train_whole(tmp_path / "run", "moons", 1, **{**SMALL_MOONS, "data__subset": 50, "epochs": 5})
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [f.name for f in folders] == [f"epoch={e:04d}" for e in range(1, 6)]
    assert all((f / "model.safetensors").exists() for f in folders)
    assert [(f / "optimizer.safetensors").exists() for f in folders] == [False, False, True, True, True]


def test_checkpoints_are_ordered_by_number_and_unfinished_ones_removed(tmp_path):
    config, run = workers.start_run(tmp_path, "moons", data__subset=100, epochs=1, method="ce")
    workers.train(config, run.path)
    training = Training(config, run, load(config.data, config.seed), torch.device("cpu"))
    for epoch in (9999, 10000):
        training.state.position = Position(epoch)
        checkpoint.save(run, training.identity, training.state)
    found, complaints = checkpoint.newest(run, training.identity)
    assert (found.position.epoch, complaints) == (10000, [])
    (run.checkpoints_dir / ".writing-epoch=10001").mkdir()
    clear_unfinished(run)
    assert not list(run.checkpoints_dir.glob(".*"))


def test_share_of_batch_covers_the_batch():
    indices = torch.arange(7)
    for world in (1, 2, 3, 8):
        parts = [indices[slice(*distributed.block(7, r, world))] for r in range(world)]
        assert torch.equal(torch.cat(parts), indices)

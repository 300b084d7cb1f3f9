"""The check of a network with a few samples before anything is written, and the doubts that it leaves with a run."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ima_dist import evaluate, train
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import PRESET_NORMS, PRESETS, make_config
from ima_dist.dashboard.parts import Note
from ima_dist.dashboard.views import accuracy
from ima_dist.data.types import DataSet, Split
from ima_dist.report.write import write_report
from ima_dist.results.doubts import door_doubts, doubts, range_text, share
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection
from ima_dist.training.door import check_door, input_range
from ima_dist.training.door_steps import smallest_share
from ima_dist.training.loop import Training
from ima_dist.training.network import make_network
from tests.support import hostile
from tests.support.hostile import images, settings
from tests.support.inline import without_ray


def checked(factory, data=None, **options):
    config, data = settings(factory, **options), data or images()
    return check_door(make_network(config, data), data, config)


def doubts_of(factory, **options):
    return door_doubts(checked(factory, **options), [0.3], "linf")


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("pair", "returns a tuple in evaluation mode, not logits"),
        ("pair_in_training", "returns a tuple in training mode, not logits"),
        ("mapping", "returns a dict in evaluation mode"),
        ("one_output", "for two classes return two outputs"),
        ("detached", "has no gradient with respect to its input"),
        ("in_place", "changes the samples that it is given"),
        ("of_the_batch_flat", "does not take one sample alone"),
        ("unlisted", "has no trainable parameters"),
        ("sparse_buffer", "cannot be saved in a checkpoint"),
    ],
)
def test_what_cannot_work_is_refused_whatever_is_allowed(factory, sentence):
    with pytest.raises(ConfigError, match=sentence) as raised:
        checked(factory, allow=("random", "coupled", "not-finite"))
    assert str(raised.value).endswith(".")


@pytest.mark.parametrize(
    ("factory", "name", "sentence"),
    [
        ("dropping", "random", "different answers to the same samples"),
        ("resized", "random", "different answers to the same samples"),
        ("counting", "random", "changes its parameters or buffers in evaluation mode"),
        ("unseeded", "random", "has other weights each time it is built with seed 0"),
        ("of_the_batch", "coupled", "another answer alone than in a batch"),
        ("centred", "coupled", "another answer alone than in a batch"),
        ("sorted_by_place", "coupled", "another answer alone than in a batch"),
        ("root", "not-finite", "NaN or infinite gradients"),
        ("logarithm", "not-finite", "NaN or infinite"),
        ("overflowing", "not-finite", "NaN or infinite logits"),
    ],
)
def test_what_must_be_allowed_is_refused_without_and_noted_with_it(factory, name, sentence):
    data = (
        images()
        if factory != "logarithm"
        else DataSet(
            **{
                part: Split(split.x + 0.5, split.y)
                for part, split in vars(images()).items()
                if isinstance(split, Split)
            },
            box=None,
            num_classes=3,
        )
    )
    eps = {"eps_max": 0.7} if factory == "logarithm" else {}
    with pytest.raises(ConfigError, match=f"{sentence}.*--allow {name}"):
        checked(factory, data, **eps)
    found = checked(factory, data, allow=(name,), **eps)
    assert found["allowed"] == [name]
    assert any(f"--allow {name}" in text for text in door_doubts(found, [0.3], "linf"))


@pytest.mark.parametrize("factory", ["honest", "honest_root", "lazy", "batch_norm", "by_numpy", "by_chance"])
def test_honest_networks_pass_without_a_doubt(factory):
    found = checked(factory)
    assert (found["zero_gradient"], found["squashed"], found["allowed"]) == (0, None, [])
    assert doubts_of(factory) == ()


def of_two():
    """Images of the first two of three classes."""
    parts = {part: Split(s.x, s.y % 2) for part, s in vars(images()).items() if isinstance(s, Split)}
    return DataSet(**parts, box=(0.0, 1.0), num_classes=3)


@pytest.mark.parametrize("method", ["ima", "trades"])
def test_a_masked_class_may_have_a_logit_of_minus_infinity(method):
    found = checked("masked", of_two())
    assert (found["zero_gradient"], found["squashed"], found["allowed"]) == (0, None, [])
    with pytest.raises(ConfigError, match=r"infinite loss in training mode.*--allow not-finite"):
        checked("masked")  # some of these samples belong to the masked class
    config = settings("masked", method=method, epochs=1, **{"attack.steps": 3})
    training = Training(config, RunDir("unused"), of_two(), torch.device("cpu"))
    training.begin()
    loss, losses, _ = training._loss(next(training.train.batches([torch.arange(32)])))
    loss.backward()
    assert losses.isfinite().all()
    assert all(p.grad.isfinite().all() for p in training.network.parameters())
    totals = training.state.counters.totals()
    assert totals["met_gradients"] > 0
    assert totals["met_zero"] == totals["met_not_finite"] == totals["met_bad_logits"] == 0


def test_networks_that_hide_their_gradient_are_doubtful():
    assert "gradient of zero at 32 of 32" in doubts_of("rounded")[0]
    assert "gradient of zero" in doubts_of("steep")[0]
    assert "--allow random" in doubts_of("resized", allow=("random",))[0]


def test_a_gradient_of_another_function_is_doubtful():
    for factory in ("misled", "straight_through"):
        found = checked(factory)
        assert found["wrong_gradient"] > 16
        assert found["zero_gradient"] == 0
        (sentence,) = door_doubts(found, [0.3], "linf")
        assert "gradient is not that of its answers" in sentence
    for factory in ("honest", "honest_root", "batch_norm", "masked", "rounded"):
        assert checked(factory, *([of_two()] if factory == "masked" else []))["wrong_gradient"] == 0


def test_outputs_that_are_not_logits_are_doubtful():
    assert "probabilities, not logits" in doubts_of("softmaxed")[0]
    assert "between 0 and 1" in doubts_of("squashed")[0]


def test_a_network_that_leaves_the_precision_asked_for_is_refused():
    assert checked("single_precision")["allowed"] == []
    with pytest.raises(ConfigError, match="returns float32 values under --dtype float64"):
        checked("single_precision", dtype="float64")


def test_all_weights_are_drawn_inside_the_seed():
    data = images()
    for factory in ("lazy", "by_numpy", "honest"):
        for dtype in ("float32", "float64"):
            before = random.random, np.random.get_state()[1].copy(), torch.random.get_rng_state()
            first = make_network(settings(factory, dtype=dtype), data).state_dict()
            assert torch.equal(torch.random.get_rng_state(), before[2])
            assert (np.random.get_state()[1] == before[1]).all()
            torch.rand(3), np.random.rand(3), random.random()
            second = make_network(settings(factory, dtype=dtype), data).state_dict()
            other = make_network(settings(factory, dtype=dtype, seed=1), data).state_dict()
            assert all(torch.equal(first[name], second[name]) for name in first)
            assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_network_and_all_generators_are_left_as_they_were():
    config, data = settings("batch_norm"), images()
    network = make_network(config, data)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    check_door(network, data, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_the_smallest_share_of_a_batch_is_tried_in_training_mode():
    # 96 samples in batches of 19 leave one sample; in batches of 32 two workers get 16 each.
    assert smallest_share(96, settings("honest", batch_size=19)) == (1, 1)
    assert smallest_share(96, settings("honest", batch_size=32, workers=2)) == (16, 2)
    assert smallest_share(96, settings("honest", batch_size=30, workers="1-4")) == (1, 4)
    with pytest.raises(ConfigError, match=r"does not take 1 sample in training mode.*--batch-size"):
        checked("batch_norm", batch_size=19)
    assert checked("batch_norm", batch_size=32, workers=2)["allowed"] == []


def test_an_unused_parameter_is_taken_with_several_workers_too():
    for workers in (1, 2):
        assert checked("unused_parameter", workers=workers)["allowed"] == []


def test_the_noise_levels_are_compared_with_the_range_of_the_inputs():
    wide = input_range(images(scale=255.0))
    assert (wide["low"], wide["box"], wide["size"]) == (0.0, None, 64)
    assert 180 < wide["high"] < 200
    assert share({"low": 0, "high": 2, "size": 16}, 0.5, "linf") == pytest.approx(0.25)
    assert share({"low": 0, "high": 2, "size": 16}, 2.0, "l2") == pytest.approx(0.25)
    (text,) = door_doubts({"inputs": wide}, [0.3], "linf")
    assert "less than one grey level" in text
    assert door_doubts({"inputs": {**wide, "box": [0.0, 255.0]}}, [0.3], "linf") == ()
    unit = {"low": 0.0, "high": 1.0, "size": 4, "box": [0.0, 1.0], "spread": None}
    assert range_text(unit, 0.3, "linf") == (
        "Inputs lie between 0 and 1, kept between 0 and 1; ε_max 0.3 is 30 % of that range."
    )
    for levels, word in (([0.0003, 0.3], "less than 0.1 %"), ([0.3, 8.0], "more than 50 %"), ([8.0], "800 %")):
        assert any(word in text for text in door_doubts({"inputs": unit}, levels, "linf")), levels
    assert door_doubts({"inputs": unit}, [0.3, 0.0001, 0.0], "linf") == ()
    # In bytes that hold masks of 0 and 1, the largest input is 1/255.
    masks = DataSet(*[Split((torch.arange(64) % 2).to(torch.uint8).view(4, 16), torch.arange(4) % 2)] * 3, (0, 1), 2)
    assert input_range(masks)["high"] == pytest.approx(1 / 255)
    assert "more than 50 %" in door_doubts({"inputs": input_range(masks)}, [0.3], "linf")[0]


def test_the_range_is_found_wherever_its_ends_lie(monkeypatch):
    monkeypatch.setattr("ima_dist.training.door._AT_ONCE", 200)  # three images
    data = images()
    data.train.x[17, 0, 3, 3], data.train.x[50, 0, 0, 0] = 7.0, -3.0
    found = input_range(data)
    assert (found["low"], found["high"]) == (-3.0, 7.0)
    monkeypatch.setattr("ima_dist.training.door._VALUES", 640)  # ten of the 96 images
    assert input_range(data)["high"] < 7
    assert input_range(data, every=True)["high"] == 7
    rows = torch.rand(90, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-3])
    split = Split(rows, torch.arange(90) % 3)
    flat = DataSet(split, split, split, box=None, num_classes=3)
    widths = rows.amax(0) - rows.amin(0)
    assert input_range(flat, every=True)["spread"] == pytest.approx(float(widths[0] / widths[1]))


def test_features_of_very_different_ranges_are_doubtful():
    x = torch.rand(40, 3) * torch.tensor([1.0, 1.0, 1000.0])
    data = DataSet(*[Split(x, torch.arange(40) % 2)] * 3, None, 2)
    assert "differ by a factor of" in door_doubts({"inputs": input_range(data)}, [10.0], "linf")[0]
    assert input_range(images())["spread"] is None


def test_damaged_findings_raise_no_doubt_and_no_error():
    for findings in ({}, {"samples": "x", "allowed": 3, "inputs": [1]}, {"inputs": {"low": None, "high": "x"}}):
        assert door_doubts(findings, [0.3], "linf") == ()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_papers_noise_levels_suit_its_data(preset):
    shape = {"moons": (2,), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "covid_ct": (1, 224, 224)}
    shape["pathmnist"] = (3, 28, 28)
    size = torch.Size(shape.get(preset, (3, 32, 32))).numel()
    inputs = {"low": 0.0, "high": 1.0, "size": size, "box": [0.0, 1.0], "spread": None}
    for norm in PRESET_NORMS[preset]:
        config = make_config(preset, {"norm": norm})
        assert door_doubts({"inputs": inputs}, [config.eps_max, *config.eval.noise], norm) == ()


def test_allowing_is_stored_and_does_not_change_the_fingerprint():
    assert hostile.settings("honest").fingerprint() == hostile.settings("honest", allow=("random",)).fingerprint()
    with pytest.raises(ConfigError, match="--allow must be one of random, coupled, not-finite"):
        settings("honest", allow=("anything",))


def test_a_refused_network_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    options = ["--data.source", "tests.support.hostile:loaded", "--device", "cpu", "--out", str(tmp_path / "run")]
    for factory, sentence in (("pair", "returns a tuple"), ("dropping", "--allow random"), ("detached", "no gradient")):
        assert train.main(["moons", "--model.factory", f"tests.support.hostile:{factory}", *options]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_what_was_allowed_and_doubted_goes_with_the_result(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    factories = {"resized": ["--allow", "random"], "rounded": [], "honest": []}
    for factory, further in factories.items():
        words = f"moons --data.source tests.support.hostile:loaded --model.factory tests.support.hostile:{factory}"
        short = "--device cpu --method ce --epochs 1 --eval.noise 0,0.1 --eval.steps 2 --eval.samples 12"
        assert train.main([*words.split(), *short.split(), *further, "--out", str(tmp_path / factory)]) == 0
        printed = capsys.readouterr()
        assert "Inputs lie between 0 and 0.7" in printed.out
        run = Run.open(tmp_path / factory)
        found = doubts(run)
        if factory == "honest":
            assert found == ()
            assert "Doubtful" not in printed.out
            continue
        assert len(found) == (3 if factory == "rounded" else 1)
        if factory == "rounded":
            # One noise level, two losses, two steps.
            assert found[0].startswith("pgd100: 100 % of 48 gradients of single samples were zero")
            assert found[1].startswith("worst: 100 % of ")
        sentence = found[-1]
        assert f"Doubtful: {sentence}" in printed.out
        assert f"warning: {sentence}" in printed.err
        assert run.config.allow == tuple(further[1:])
    assert write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count('<p><span class="reduced">doubtful</span>') == 4
    collection = Collection(tmp_path)
    collection.refresh()
    parts = accuracy.show(collection, {"runs": sorted(factories), "attack": "pgd100"})
    told = [part.text for part in parts if isinstance(part, Note)]
    assert [text.split(" is doubtful: ")[0] for text in told] == ["resized", *["rounded"] * 3]
    # Another evaluation takes the stored permission, and adds what its own noise levels make doubtful.
    assert evaluate.main([str(tmp_path / "honest"), "--eval.noise", "0,8", "--device", "cpu"]) == 0
    assert any("Noise level 8" in text for text in doubts(Run.open(tmp_path / "honest")))

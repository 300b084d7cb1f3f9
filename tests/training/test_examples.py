"""The noisy images that an evaluation keeps for Fig. 10."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from ima_dist import train
from ima_dist.config.presets import make_config
from ima_dist.data.types import Resident, Split
from ima_dist.evaluation.artefacts import extremes, noisy_images
from ima_dist.evaluation.lost_first import first_lost
from ima_dist.models import fashion_mnist_cnn
from ima_dist.results.flips import Flips
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_arrays, read_parquet
from ima_dist.rundir.run import Run
from tests.support.datafiles import write_idx
from tests.support.inline import without_ray
from tests.support.small_images import of_any_size

NAMES = ("index", "label", "clean", "clean_prediction", "noise", "noisy", "prediction", "class_names")


def test_first_sample_of_each_of_five_classes_within_its_ball():
    torch.manual_seed(0)
    network = fashion_mnist_cnn(10, (1, 28, 28))
    y = torch.tensor([7, 7, 3, 9, 3, 0, 1, 2, 8])
    test = Resident(Split(torch.rand(9, 1, 28, 28), y), "cpu", torch.float32, (0.0, 1.0))
    for norm, size in (("linf", lambda d: np.abs(d).max()), ("l2", lambda d: np.sqrt((d**2).sum()))):
        config = make_config("fashion_mnist", {"norm": norm, "eval.steps": 4, "eval.noise": (0.0, 0.1, 0.3)})
        found = noisy_images(network, test, torch.arange(9), config, None)
        assert found["index"].tolist() == [5, 6, 7, 2, 0]
        assert found["label"].tolist() == [0, 1, 2, 3, 7]
        assert found["noisy"].shape == (5, 3, 1, 28, 28)
        assert found["class_names"].tolist() == [str(i) for i in range(10)]
        assert np.array_equal(found["noisy"][:, 0], found["clean"])
        assert np.array_equal(found["prediction"][:, 0], found["clean_prediction"])
        for level, images in zip(found["noise"], found["noisy"].swapaxes(0, 1), strict=True):
            for image, clean in zip(images.astype(float), found["clean"].astype(float), strict=True):
                # Half precision rounds each of two numbers below 1 by up to 2.5e-4.
                assert size(image - clean) <= level + 5e-4 * (28 if norm == "l2" else 1)
                assert image.min() >= 0
                assert image.max() <= 1
    few = noisy_images(network, test, torch.tensor([0, 2, 5]), config, None)
    assert few["index"].tolist() == [5, 2, 0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Attacked at three levels."""
    place = tmp_path_factory.mktemp("examples")
    data = write_idx(place / "data")
    options = "--data.subset 40 --epochs 1 --method ce --eval.steps 3 --eval.noise 0,0.1,0.5 --dtype float64"
    options += f" --model.factory {of_any_size.__module__}:{of_any_size.__name__} --device cpu"
    command = ["fashion_mnist", *options.split(), "--data.dir", str(data), "--out", str(place / "run")]
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert train.main(command) == 0
    return RunDir(place / "run")


def test_a_run_keeps_them_and_they_agree_with_its_outcomes(run):
    found = read_arrays(run.examples_dir / "noisy.npz", NAMES)
    assert found is not None
    assert found["class_names"][0] == "T-shirt/top"
    # Its attack is pgd100's with cross-entropy, so the predictions are, too.
    outcomes = read_parquet(run.outcomes_path).filter((pc.field("attack") == "pgd100") & (pc.field("loss") == "ce"))
    expected = {(r["index"], r["noise"]): (r["label"], r["prediction"]) for r in outcomes.to_pylist()}
    for i, index in enumerate(found["index"].tolist()):
        for j, level in enumerate(found["noise"].tolist()):
            assert expected[index, level] == (found["label"][i], found["prediction"][i, j])
    network = of_any_size(10, (1, 28, 28))
    assert run.summary()["parameters"] == sum(p.numel() for p in network.parameters())


def test_images_that_are_lost_first_are_kept_by_turns_of_their_classes(run):
    run = Run(run)
    found = run.flips
    assert found is not None
    outcomes = read_parquet(run.dir.outcomes_path)
    rows = outcomes.filter((pc.field("attack") == str(found["attack"])) & (pc.field("loss") == "both")).to_pylist()
    wrong: dict[int, list[float]] = {}
    for row in rows:
        wrong.setdefault(row["index"], [])
        if row["label"] != row["prediction"]:
            wrong[row["index"]].append(row["noise"])
    lost = {index: min(levels) for index, levels in wrong.items() if levels and min(levels) > 0}
    assert set(found["index"].tolist()) == set(lost) != set()  # they are few, so all are kept
    for i, index in enumerate(found["index"].tolist()):
        assert found["noise"][i] == pytest.approx(lost[index])
        assert found["clean_prediction"][i] == found["label"][i]
        change = np.abs(found["noisy"][i].astype(float) - found["clean"][i].astype(float)).max()
        assert change <= found["noise"][i] + 5e-4
    assert found["noise"].tolist() == sorted(found["noise"].tolist())
    log = run.dir.log_path.read_text().splitlines()
    assert any("evaluation" in line for line in log)
    assert all(line[:4].isdigit() for line in log)  # the date


def test_classes_take_turns_and_the_first_come_first():
    levels = np.array([0.0, 0.1, 0.2])
    label = np.array([0, 0, 0, 1, 1])
    lost = np.array([0.1, 0.2, np.inf, 0.2, 0.0])  # the third is never lost, the last is wrong without noise
    prediction = np.array([np.where(lost <= level, 1 - label, label) for level in levels])
    flips = Flips(np.array([9, 3, 5, 4, 1]), label, levels, prediction)
    assert flips.lost.tolist() == lost.tolist()
    assert first_lost(flips, 9) == [0, 3, 1]
    assert first_lost(flips, 1) == [0]
    assert flips.confusion(0.2, 2).tolist() == [[1, 2], [2, 0]]


def test_the_smallest_noise_survives_in_stored_images():
    """Half precision resolves 0.5 near 1000 and 0.0005 near 1, and has nothing above 65,504."""
    torch.manual_seed(0)
    network = fashion_mnist_cnn(10, (1, 28, 28))
    for low, high, eps, norm in ((-1000, 1000, 0.3, "linf"), (0, 1, 0.0005, "linf"), (0, 1, 0.01, "l2")):
        x = low + (high - low) * torch.rand(4, 1, 28, 28)
        test = Resident(Split(x, torch.arange(4)), "cpu", torch.float32, None)
        config = make_config("fashion_mnist", {"norm": norm, "eval.steps": 2, "eval.noise": (0.0, eps)})
        found = noisy_images(network, test, torch.arange(4), config, None)
        moved = found["noisy"][:, 1].astype(float) - found["clean"].astype(float)
        size = np.abs(moved).max((1, 2, 3)) if norm == "linf" else np.sqrt((moved**2).sum((1, 2, 3)))
        assert size == pytest.approx(np.full(4, eps), rel=0.05)
    table = pa.table({"index": [0, 1], "label": [0, 0], "margin": [0.1, 0.2], "correct": [True, True]})
    wide = Resident(Split(torch.rand(2, 1, 4, 4) + 65_535.0, torch.tensor([0, 0])), "cpu", torch.float32, None)
    assert np.isfinite(extremes(wide, [table], ("a",))["sample"]).all()

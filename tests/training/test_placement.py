"""Equal margins, weights and accuracies wherever the samples are, with augmentation, and after interruptions."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.data.augment import augment, augmentation, check_augmentation
from ima_dist.data.types import DataSet, Split, Unreadable
from ima_dist.rundir.directory import RunDir
from ima_dist.worker.failure import Failure, failing_together
from ima_dist.worker.tasks import audit_task, train_task
from tests.support import workers
from tests.support.small_images import Compressed

CPU = torch.device("cpu")
IMAGES = "tests.support.small_images"
OPTIONS: dict[str, Any] = {
    "data__source": f"{IMAGES}:compressed", "model__factory": f"{IMAGES}:cnn", "name": "small", "eps_max": 0.1,
    "epochs": 2, "batch_size": 18, "attack__steps": 3, "optimizer__lr": 1e-2, "dtype": "float64", "device": "cpu",
    "eval__noise": (0.0, 0.05), "eval__steps": 3, "eval__samples": 16, "eval__val_noise": 0.05, "eval__val_steps": 2,
    "data__augment": "crop:2,flip,rotate:15,brightness:0.2,contrast:0.2",
}  # fmt: skip


def never() -> bool:
    return False


def start(path: Path, place: str, **options: Any) -> tuple[Config, RunDir]:
    return workers.start_run(path, "own", **{**OPTIONS, "data__place": place, **options})


def history(path: Path) -> dict[str, list[Any]]:
    """What was found in each epoch, without times."""
    found = pq.read_table(path / "history.parquet").to_pydict()
    return {name: values for name, values in found.items() if "second" not in name}


def results(config: Config, run: RunDir) -> list[Any]:
    """Weights, margins, history and outcomes."""
    outcomes = pq.read_table(run.path / "outcomes.parquet").to_pydict()
    return [*workers.final_state(config, run.path), history(run.path), outcomes, run.summary()["curves"]]


@pytest.fixture(scope="module")
def on_device(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunDir]:
    config, run = start(tmp_path_factory.mktemp("device") / "run", "device")
    train_task(config, run, CPU, never)
    return config, run


@pytest.mark.parametrize("place", ["host", "disk"])
def test_training_and_evaluation_are_equal_in_every_place(
    place: str, on_device: tuple[Config, RunDir], tmp_path: Path
) -> None:
    config, run = start(tmp_path / "run", place)
    assert config.fingerprint() == on_device[0].fingerprint()
    train_task(config, run, CPU, never)
    expected, found = results(*on_device), results(config, run)
    assert workers.largest_difference(expected[0], found[0]) == 0
    assert torch.equal(expected[1], found[1])
    assert expected[2:] == found[2:]
    assert len(found[1].unique()) > 10  # they have not all stayed where they were
    samples, audits = 20, []
    for c, r in (on_device, (config, run)):
        audit_task(c, r, CPU, never, samples)
        audits.append(pq.read_table(r.audit_path).to_pydict())
    assert audits[0] == audits[1]


def test_two_workers_interrupted_in_mid_epoch_end_equal_from_the_disk(
    on_device: tuple[Config, RunDir], tmp_path: Path
) -> None:
    config, run = start(tmp_path / "run", "disk")
    # The first epoch has six steps: two of them on two workers, three on one, and the rest of both epochs on two.
    for count, stop_after in ((2, 2), (1, 3), (2, None)):
        workers.run_on(count, workers.train, config, run.path, stop_after)
        if stop_after is not None:
            assert any("-step=" in path.name for path in run.checkpoints_dir.iterdir())
    weights, margins = workers.final_state(config, run.path)
    expected, expected_margins = workers.final_state(*(on_device[0], on_device[1].path))
    assert workers.largest_difference(weights, expected) < 1e-9
    assert margins is not None
    assert expected_margins is not None
    assert float((margins - expected_margins).abs().max()) < 1e-9
    for name, column in history(run.path).items():
        if name in ("val_accuracy", "val_robust_accuracy", "train_accuracy", "noisy_samples"):
            assert column == history(on_device[1].path)[name]


def test_a_file_that_vanishes_ends_the_run_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, calls = Compressed.fetch, 0

    def failing(self: Compressed, rows: np.ndarray) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 15:
            raise FileNotFoundError(2, "No such file or directory", "scan7.png")
        return fetch(self, rows)

    config, run = start(tmp_path / "run", "disk", checkpoint_every=1)
    monkeypatch.setattr(Compressed, "fetch", failing)
    with pytest.raises(Failure) as caught:
        failing_together(lambda _: train_task(config, run, CPU, never), {})
    assert str(caught.value) == (
        "Unreadable: the data can no longer be read (FileNotFoundError: [Errno 2] No such file or directory: "
        "'scan7.png'): bring the files back as they were"
    )
    assert isinstance(caught.value.__cause__, Unreadable)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samples")]
    monkeypatch.setattr(Compressed, "fetch", fetch)
    assert train_task(config, run, CPU, never)["status"] == "finished"


# ---- augmentation --------------------------------------------------------------------------------------


def pictures(n: int = 60, shape: tuple[int, ...] = (2, 9, 12)) -> torch.Tensor:
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def data_of(x: torch.Tensor, **options: Any) -> DataSet:
    split = Split(x, torch.arange(len(x)) % 2)
    return DataSet(split, split, split, (0.0, 1.0), 2, **options)


def changed(option: str, x: torch.Tensor, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    change = augmentation(option, data_of(x))
    assert change is not None
    return change(x, torch.arange(len(x)), seed, epoch)


@pytest.mark.parametrize(
    "option", ["crop:3", "flip", "vflip", "rotate:20", "brightness:0.3", "contrast:0.5", f"{IMAGES}:shaken"]
)
def test_augmentation_is_keyed_by_seed_epoch_and_index(option: str) -> None:
    x = pictures()
    out, before, change = changed(option, x), x.clone(), augmentation(option, data_of(x))
    assert change is not None
    assert out.shape == x.shape
    assert 0 <= out.min() < out.max() <= 1
    assert not torch.equal(out, x)
    assert torch.equal(x, before)
    assert torch.equal(out, changed(option, x))
    assert not torch.equal(out, changed(option, x, seed=1))
    assert not torch.equal(out, changed(option, x, epoch=1))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:7]
    torch.testing.assert_close(change(x[order], order, 0, 0), out[order], rtol=0, atol=1e-14)


def test_steps_do_what_they_say() -> None:
    x = pictures()
    for option, axis in (("flip", 3), ("vflip", 2)):
        same = (changed(option, x) == x).flatten(1).all(1)
        mirrored = (changed(option, x) == x.flip(axis)).flatten(1).all(1)
        assert bool((same ^ mirrored).all())
        assert 15 < int(same.sum()) < 45
    factors = changed("brightness:0.5", 0.5 * torch.ones_like(x))[:, 0, 0, 0] / 0.5
    assert 0.5 <= factors.min() < 0.7 < 1.3 < factors.max() <= 1.5
    flat = changed("contrast:0.5", 0.3 * torch.ones_like(x))
    torch.testing.assert_close(flat, 0.3 * torch.ones_like(x))
    middle = 0.25 + 0.5 * x
    torch.testing.assert_close(changed("contrast:0.4", middle).flatten(1).mean(1), middle.flatten(1).mean(1))
    # Turns about the centre: what is round stays, except at the edges, and a bar does not.
    down, right = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    radius = (down**2 + right**2).sqrt()
    spot = torch.exp(-(radius**2) / 50).double().expand(20, 1, 41, 41)
    assert float(((changed("rotate:180", spot) - spot).abs() * (radius < 18)).max()) < 0.02
    turned = changed("rotate:30", (down.abs() < 3).double().expand(20, 1, 41, 41))
    assert len(turned.flatten(1).unique(dim=0)) == 20
    assert torch.equal(changed("crop:3", torch.ones_like(x)), torch.ones_like(x))


def test_none_switches_off_what_the_data_set_asks_for() -> None:
    data = data_of(pictures(), augment=True)
    assert augmentation(None, data) is augment
    assert augmentation("none", data) is None
    assert augmentation(None, data_of(pictures())) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("croop:4", r"steps of crop, flip.*, not croop:4 .did you mean crop"),
        ("crop", "must give crop a whole number, such as crop:4"),
        ("crop:2.5", "must give crop a whole number"),
        ("flip:2", "must have flip without a number"),
        ("rotate:nan", "must give rotate above 0 and at most 180"),
        ("brightness:1.5", "must give brightness above 0 and at most 1"),
        ("flip,flip", "name each step once"),
        ("flip,mine:f", "not mine:f"),
        ("", "not nothing"),
    ],
)
def test_augmentations_that_do_not_exist(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config("moons", {"data.augment": text})


def noisy(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return x + torch.rand_like(x)


def in_place(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return x.mul_(0.5)


def flattened(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


def broken(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    raise KeyError("a mistake")


@pytest.mark.parametrize(
    ("option", "shape", "message"),
    [
        ("noisy", (1, 8, 8), "does something else to a sample alone, or when it is called again"),
        ("in_place", (1, 8, 8), "changes the samples that it is given"),
        ("flattened", (1, 8, 8), r"must return samples like those .* not torch.float32 \(3, 64\)"),
        ("broken", (1, 8, 8), "failed, correct it: KeyError: 'a mistake'"),
        ("missing", (1, 8, 8), "has no function 'missing'"),
        ("crop:8", (1, 8, 8), r"crop:8 needs images of more pixels than \(1, 8, 8\) has"),
        ("flip", (8, 8, 3), "channels first, and a sample is"),
        ("flip", (5,), "give a function of your own"),
    ],
)
def test_augmentations_that_do_not_fit_the_data(option: str, shape: tuple[int, ...], message: str) -> None:
    data = data_of(pictures(20, shape))
    named = option if ":" in option or option == "flip" else f"{__name__}:{option}"
    with pytest.raises(ConfigError, match=message):
        check_augmentation(named, data, torch.float32)


def single(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return x.float()


def test_a_function_is_tried_in_the_precision_of_the_run() -> None:
    data = data_of(pictures())
    check_augmentation(f"{__name__}:single", data, torch.float32)
    with pytest.raises(ConfigError, match=r"must return samples like those it is given, torch.float64"):
        check_augmentation(f"{__name__}:single", data, torch.float64)


def test_augmentation_is_part_of_the_fingerprint_only_where_it_is_used() -> None:
    plain = make_config("cifar10", {})
    assert make_config("cifar10", {"data.augment": "flip"}).fingerprint() != plain.fingerprint()
    assert make_config("cifar10", {"data.place": "disk"}).fingerprint() == plain.fingerprint()

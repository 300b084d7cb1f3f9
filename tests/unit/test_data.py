"""Data sets: the built-in ones, a user's own, subsets, damaged files, and a split on a device."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from ima_dist.config.errors import ConfigError, DataNote, DataWarning
from ima_dist.config.references import resolve_reference
from ima_dist.config.schema import DataConfig
from ima_dist.data import moons
from ima_dist.data.choosing import choose_balanced, hold_out
from ima_dist.data.load import load
from ima_dist.data.types import DataSet, Resident, Split
from tests.support.datafiles import counts

Source = Callable[..., DataSet]


# ---- a user's own data ---------------------------------------------------------------------------------


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """Makes ``load`` call the given function, as if it stood in a user's module."""

    def install(returned: Any, **options: Any) -> DataSet:
        module = types.ModuleType("users_data")
        vars(module)["load"] = returned if callable(returned) else lambda config, seed: returned
        monkeypatch.setitem(sys.modules, "users_data", module)
        return load(DataConfig(source="users_data:load", **options), seed=7)

    return install


def arrays(n: int = 40, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(0, 1, n * 3).reshape(n, 3), np.arange(n, dtype=np.int32) % classes


def test_dictionary_of_numpy_arrays(source: Source) -> None:
    x, y = arrays()
    data = source({"train": (x, y), "val": (x[:8], y[:8]), "test": (x[:12], y[:12]), "box": [0, 1]})
    assert isinstance(data, DataSet)
    assert torch.equal(data.train.x, torch.from_numpy(x))
    assert data.train.y.dtype == torch.int64
    assert data.train.y.tolist() == y.tolist()
    assert [len(s) for s in (data.train, data.val, data.test)] == [40, 8, 12]
    assert data.box == (0.0, 1.0)
    assert data.num_classes == 4


def test_function_receives_configuration_and_seed(source: Source) -> None:
    x, y = arrays()
    seen = []

    def function(config: DataConfig, seed: int) -> dict[str, Any]:
        seen.append((config.dir, seed))
        return {"train": (x, y), "test": (x, y)}

    source(function, dir="/somewhere")
    assert seen == [("/somewhere", 7)]


def test_validation_set_may_be_left_out_or_empty(source: Source) -> None:
    x, y = arrays()
    for val in (None, (np.array([]), np.array([]))):
        data = source({"train": (x, y), "val": val, "test": (x, y)})
        assert len(data.val) == 0
        assert data.val.x.shape == (0, 3)
        assert data.box is None


@pytest.mark.parametrize("kind", ["array", "other byte order", "tensor", "HDF5"])
def test_uint16_is_taken_and_its_range_said(source: Source, tmp_path: Path, kind: str) -> None:
    x, y = np.linspace(0, 4095, 80).astype(np.uint16).reshape(20, 4), np.arange(20) % 2
    given: Any = (x, y)
    if kind == "other byte order":
        given = (x.astype(">u2"), y)
    elif kind == "tensor":
        given = (torch.from_numpy(x), torch.from_numpy(y))
    elif kind == "HDF5":
        file = pytest.importorskip("h5py").File(tmp_path / "a.h5", "w")
        given = (file.create_dataset("x", data=x), file.create_dataset("y", data=y.astype(np.uint16)))
    with pytest.warns(DataNote, match="x of train is uint16 from 0 to 4095: it is divided by 65535"):
        data = source({"train": given, "test": given, "box": (0, 1)})
    assert data.train.x.dtype == torch.float32
    assert np.array_equal(data.train.x.numpy(), x / np.float32(65535))
    assert data.train.y.tolist() == y.tolist()


def test_uint8_images_get_the_box_of_their_scaled_range(source: Source) -> None:
    x, y = np.zeros((20, 1, 4, 4), np.uint8), np.arange(20) % 2
    assert source({"train": (x, y), "test": (x, y)}).box == (0.0, 1.0)


def test_tensors_read_only_arrays_and_foreign_byte_order(source: Source) -> None:
    x, y = arrays()
    frozen = x.astype(">f4")
    frozen.flags.writeable = False
    data = source({"train": (frozen, y[::-1]), "test": (torch.from_numpy(x).float(), torch.from_numpy(y))})
    assert torch.equal(data.train.x, data.test.x)
    assert data.train.y.tolist() == y[::-1].tolist()


def test_names_follow_their_samples_into_a_subset(source: Source) -> None:
    x, y = torch.arange(200.0)[:, None], torch.arange(200) % 2
    named = Split(x, y, tuple(f"scan{i}" for i in range(200)))
    data = source(DataSet(train=named, val=named, test=named, box=None, num_classes=2), subset=20)
    assert data.train.names == tuple(f"scan{int(v)}" for v in data.train.x[:, 0])


GOOD = arrays()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": (GOOD[0][:5], GOOD[1])}, "train has 5 samples x but 40 labels"),
        ({"train": (GOOD[0][:0], GOOD[1][:0])}, "train holds no samples"),
        ({"test": (GOOD[0][:0], GOOD[1][:0])}, "test holds no samples"),
        ({"test": None}, "lacks the entry 'test'"),
        ({"test": GOOD[0]}, "test must be a pair"),
        ({"test": ([1, 2], [0, 1])}, "x of test must be a numpy array or a tensor, not list"),
        ({"test": (GOOD[0][:, :2], GOOD[1])}, r"sample of test is float64 of shape \(2,\)"),
        ({"val": (GOOD[0].astype(np.float32), GOOD[1])}, "sample of val is float32"),
        ({"train": (GOOD[0].astype(np.int64), GOOD[1])}, "must be uint8 or floating point, not int64"),
        ({"train": (GOOD[0].astype(str), GOOD[1])}, "x of train must hold numbers"),
        ({"train": (GOOD[0][:, 0], GOOD[1])}, r"must have shape \(N, features"),
        ({"train": (np.where(np.arange(40)[:, None] == 6, np.nan, GOOD[0]), GOOD[1])}, "first in sample 6"),
        ({"train": (GOOD[0], GOOD[1].astype(float))}, "one whole number for each sample"),
        ({"train": (GOOD[0], np.eye(4, dtype=int)[GOOD[1]])}, "one whole number for each sample"),
        ({"train": (GOOD[0], GOOD[1] + 1)}, "class 0 has no training sample"),
        (
            dict.fromkeys(("train", "val", "test"), (GOOD[0], -(GOOD[1] > 0).astype(int))),
            "labels below 0: number the classes",
        ),
        ({"train": (GOOD[0], GOOD[1] - 1)}, r"sample 0 of train has the label -1, outside 0 to 2"),
        ({"train": (GOOD[0], GOOD[1] * 0)}, "at least two"),
        ({"test": (GOOD[0], GOOD[1] + 1)}, "sample 3 of test has the label 4, outside 0 to 3"),
        ({"box": (0.0, 0.5)}, r"x of train goes from 0 to 1, outside its box \(0, 0.5\)"),
        ({"box": (1.0, 0.0)}, "low < high"),
        ({"box": "unit"}, "box must be a pair"),
        ({"class_names": ("a", "b")}, "outside 0 to 1"),
        ({"tests": GOOD}, "unknown entry 'tests' .did you mean test"),
    ],
)
def test_unusable_data_is_refused(source: Source, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        source({"train": GOOD, "val": GOOD, "test": GOOD} | change)
    assert str(caught.value).startswith("--data.source users_data:load returned data that cannot be used: ")
    assert "\n" not in str(caught.value)


def test_wrong_box_of_uint8_images_and_wrong_type_are_refused(source: Source) -> None:
    images = np.zeros((20, 1, 4, 4), np.uint8), np.arange(20) % 2
    with pytest.raises(ConfigError, match=r"box of uint8 images must be \(0, 1\)"):
        source({"train": images, "test": images, "box": (0, 255)})
    with pytest.raises(ConfigError, match="must be a DataSet or a dictionary, not tuple"):
        source((GOOD, GOOD))


def test_failure_inside_the_function_is_one_sentence_with_its_cause(source: Source) -> None:
    def broken(config: DataConfig, seed: int) -> None:
        raise KeyError("patient\nlist")

    with pytest.raises(ConfigError, match="users_data:load failed, correct it: KeyError") as caught:
        source(broken)
    assert isinstance(caught.value.__cause__, KeyError)

    def own_words(config: DataConfig, seed: int) -> None:
        raise ConfigError("The scanner list is missing.")

    with pytest.raises(ConfigError, match=r"^The scanner list is missing\.$"):
        source(own_words)


# ---- references ----------------------------------------------------------------------------------------


def test_reference_gives_the_function() -> None:
    assert resolve_reference("ima_dist.data.moons:load", "data.source") is moons.load


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("ima_dist.data.moons", "must have the form pkg.module:function"),
        (":load", "must have the form pkg.module:function"),
        ("no_such_package.data:load", "no module 'no_such_package'"),
        ("ima_dist.data.mons:load", "no module 'ima_dist.data.mons'"),
        ("ima_dist.data.moons:laod", "has no function 'laod' .did you mean load"),
        ("ima_dist.data.moons:_SIZES", "has no function '_SIZES'"),
    ],
)
def test_wrong_reference_is_refused(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_reference(reference, "data.source")
    assert str(caught.value).startswith("--data.source")


@pytest.mark.parametrize(
    ("text", "cause"), [("import no_such_package\n", ModuleNotFoundError), ("1 / 0\n", ZeroDivisionError)]
)
def test_module_that_fails_on_import_is_named_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cause: type[Exception]
) -> None:
    (tmp_path / "broken_data.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing broken_data failed, correct it: ") as caught:
        resolve_reference("broken_data:load", "model.factory")
    assert type(caught.value.__cause__) is cause


# ---- subsets -------------------------------------------------------------------------------------------


def numbered(n: int, y: torch.Tensor) -> Split:
    return Split(torch.arange(n, dtype=torch.float64)[:, None], y)


def ten_classes() -> DataSet:
    y = torch.arange(6000) % 10
    return DataSet(
        train=numbered(6000, y),
        val=numbered(1200, y[:1200]),
        test=numbered(3000, y[:3000]),
        box=None,
        num_classes=10,
    )


def test_subset_is_balanced_and_in_the_original_order(source: Source) -> None:
    data = source(ten_classes(), subset=604)
    assert counts(data.train, 10) == [61] * 4 + [60] * 6
    for part in (data.train, data.val, data.test):
        original = part.x[:, 0]
        assert (original.diff() > 0).all()
        assert torch.equal(part.y, original.long() % 10)
    # In proportion: 1200 × 604 / 6000 = 120.8 and 3000 × 604 / 6000 = 302.
    assert counts(data.val, 10) == [13] + [12] * 9
    assert counts(data.test, 10) == [31] * 2 + [30] * 8


def test_small_subset_keeps_ten_samples_of_each_class_to_test_on(source: Source) -> None:
    data = source(ten_classes(), subset=20)
    assert counts(data.train, 10) == [2] * 10
    assert counts(data.val, 10) == counts(data.test, 10) == [10] * 10


def test_test_set_smaller_than_ten_of_each_class_is_kept_whole(source: Source) -> None:
    whole = ten_classes()
    small = numbered(60, torch.arange(60) % 10)
    data = source(DataSet(train=whole.train, val=small, test=small, box=None, num_classes=10), subset=20)
    assert len(data.val) == len(data.test) == 60


def test_whole_training_set_as_subset_changes_nothing(source: Source) -> None:
    whole, data = ten_classes(), source(ten_classes(), subset=6000)
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(data, name).x, getattr(whole, name).x)


def test_choice_depends_on_the_seed_and_grows_with_the_quota() -> None:
    y = torch.arange(3000) % 3
    chosen = choose_balanced(y, [50] * 3, seed=1, stream=0)
    assert torch.equal(chosen, choose_balanced(y, [50] * 3, seed=1, stream=0))
    assert set(chosen.tolist()) < set(choose_balanced(y, [60] * 3, seed=1, stream=0).tolist())
    for seed, stream in ((2, 0), (1, 1)):
        other = choose_balanced(y, [50] * 3, seed, stream)
        # Of 150 samples out of 3000, two independent choices share 7.5 on average.
        assert len(set(chosen.tolist()) & set(other.tolist())) < 30


def test_choice_is_spread_over_the_set() -> None:
    chosen = choose_balanced(torch.zeros(10000, dtype=torch.int64), [1000], seed=0, stream=0)
    parts = torch.bincount(chosen // 1000, minlength=10)
    assert parts.sum() == 1000
    assert parts.min() > 60
    assert parts.max() < 140


def test_impossible_subset_is_refused(source: Source) -> None:
    with pytest.raises(ConfigError, match=r"--data.subset 6001 exceeds .* at most 6000"):
        source(ten_classes(), subset=6001)
    with pytest.raises(ConfigError, match=r"--data.subset must be at least the number of classes, 10, not 9"):
        source(ten_classes(), subset=9)
    x, y = np.zeros((100, 2)), (np.arange(100) < 5).astype(np.int64)
    with pytest.warns(DataWarning, match=r"equal shares would need 10 training samples of class 1, which has 5"):
        data = source({"train": (x, y), "test": (x, y)}, subset=20)
    assert counts(data.train, 2) == [19, 1]


def test_held_out_set_is_balanced_and_disjoint() -> None:
    train, val = hold_out(numbered(6000, torch.arange(6000) % 10), 500, 10, seed=3)
    assert counts(val, 10) == [50] * 10
    assert counts(train, 10) == [550] * 10
    assert torch.equal(torch.cat([train.x, val.x]).flatten().sort().values, torch.arange(6000.0).double())


def test_holding_out_leaves_half_of_a_rare_class() -> None:
    y = torch.tensor([0] * 90 + [1] * 3)
    train, val = hold_out(numbered(93, y), 40, 2, seed=0)
    assert counts(val, 2) == [20, 1]
    assert counts(train, 2) == [70, 2]


# ---- on a device ---------------------------------------------------------------------------------------


def test_resident_scales_uint8_on_the_way_out() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(-1, 1, 2, 2)
    split = Split(images, torch.arange(64) % 2)
    resident = Resident(split, "cpu", torch.float64, (0.0, 1.0))
    x, y = resident.batch(torch.tensor([63, 1]))
    assert resident.x.dtype == torch.uint8
    assert torch.equal(x, torch.tensor([[252, 253, 254, 255], [4, 5, 6, 7]]).view(2, 1, 2, 2).double() / 255)
    assert y.tolist() == [1, 1]
    assert (len(resident), resident.shape, resident.box) == (64, (1, 2, 2), (0.0, 1.0))


def test_resident_converts_floating_point_once() -> None:
    split = Split(torch.rand(10, 2, dtype=torch.float64), torch.arange(10))
    resident = Resident(split, "cpu", torch.float32, None)
    x, y = resident.batch(torch.tensor([4, 2]))
    assert resident.x.dtype == torch.float32
    assert torch.equal(x, split.x[[4, 2]].float())
    x.zero_()
    assert resident.x.ne(0).all()
    assert y.tolist() == [4, 2]


# ---- moons ---------------------------------------------------------------------------------------------


def test_moons_sizes_and_reproducibility() -> None:
    config = DataConfig(source="ima_dist.data.moons:load")
    data, again, other = load(config, 0), load(config, 0), load(config, 1)
    assert [len(s) for s in (data.train, data.val, data.test)] == [20000, 2000, 2000]
    assert data.train.x.dtype == torch.float64
    assert data.train.x.shape == (20000, 2)
    assert counts(data.train, 2) == [10000, 10000]
    assert data.box is None
    assert torch.equal(data.train.x, again.train.x)
    assert not torch.equal(data.train.x, other.train.x)
    assert not torch.equal(data.val.x, data.test.x)


@pytest.mark.parametrize("noise", [0.06, 0.0])
def test_moons_are_scikit_learns_to_the_bit(noise: float) -> None:
    found = load(DataConfig(source="ima_dist.data.moons:load", noise=noise), 3)
    for number, part in enumerate((found.train, found.val, found.test)):
        x, y = make_moons(len(part), noise=noise, random_state=np.random.RandomState([3, number]))
        assert part.x.numpy().tobytes() == x.tobytes()
        assert part.y.tolist() == y.tolist()


def test_moons_noise_is_the_distance_from_the_half_circles() -> None:
    clean = load(DataConfig(source="ima_dist.data.moons:load", noise=0.0), 0).train
    noisy = load(DataConfig(source="ima_dist.data.moons:load", noise=0.06), 0).train
    upper = clean.x[clean.y == 0]
    assert torch.allclose(upper.norm(dim=1), torch.ones(len(upper), dtype=torch.float64))
    off = noisy.x[noisy.y == 0].norm(dim=1) - 1
    assert 0.055 < off.std() < 0.065
    assert torch.equal(load(DataConfig(source="ima_dist.data.moons:load"), 0).train.x, noisy.x)

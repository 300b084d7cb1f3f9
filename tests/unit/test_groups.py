"""Groups of samples: where they come from, how they are divided, and what is refused or said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.values import from_dict, to_dict, with_options
from ima_dist.data.equal_samples import equal_samples
from ima_dist.data.groups import codes_of, divide, split_level, with_groups
from ima_dist.data.load import load
from ima_dist.data.types import DataSet, Split
from ima_dist.results.doubts import door_doubts

SHARES = (70, 15, 15)


def patients(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Classes and patients of images: 1 to 9 of each patient, mostly of one class."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, count)
    own = np.repeat(np.arange(count), sizes)
    y = np.where(rng.random(len(own)) < 0.9, (own % 3 == 0).astype(int), 1)
    return y, [f"p{i}" for i in own]


def test_groups_stay_whole_and_classes_keep_their_shares():
    y, groups = patients(300)
    parts = divide(y, groups, SHARES, test_key=1, seed=0)
    codes = codes_of(groups)
    assert all(len(set(parts[codes == code])) == 1 for code in np.unique(codes))
    for c in (0, 1):
        shares = [(parts[y == c] == part).mean() for part in ("train", "val", "test")]
        assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.03)


def test_the_data_choose_the_test_part_and_the_seed_the_validation_part():
    y, groups = patients(100)
    one, two = (divide(y, groups, SHARES, test_key=1, seed=seed) for seed in (0, 1))
    assert ((one == "test") == (two == "test")).all()
    assert ((one == "val") != (two == "val")).any()
    assert ((divide(y, groups, SHARES, test_key=2, seed=0) == "test") != (one == "test")).any()
    assert (divide(y, groups, SHARES, test_key=1, seed=0) == one).all()


def test_samples_without_groups_and_small_classes():
    y = np.repeat([0, 1, 2, 3], [1000, 20, 3, 2])
    parts = divide(y, None, (80, 0, 20), test_key=1, seed=0)
    assert [(parts[y == c] == "test").sum() for c in range(4)] == [200, 4, 1, 0]
    assert "val" not in parts
    # A patient with most of a class does not make the test part too large.
    y, groups = np.zeros(100, dtype=int), ["big"] * 90 + [f"p{i}" for i in range(10)]
    parts = divide(y, groups, SHARES, test_key=1, seed=0)
    assert set(parts[:90]) == {"train"}
    assert {"test", "val"} <= set(parts[90:])
    # A sample whose group is not known belongs to nobody else's.
    assert len(np.unique(codes_of([None, "a", None, "a"]))) == 3


def test_parts_that_are_given_stay():
    y, given = np.arange(200) % 2, np.array(["test"] * 40 + [""] * 160)
    parts = divide(y, None, SHARES, test_key=1, seed=0, parts=given)
    assert set(parts[:40]) == {"test"}
    assert "test" not in parts[40:]
    assert (parts == "val").sum() == 24  # 15 % of those that are left


# ---- own functions


def own_data(monkeypatch: pytest.MonkeyPatch, returned: dict[str, Any], **options: Any) -> DataSet:
    monkeypatch.setattr("tests.support.user_code.blobs", lambda config, seed: returned)
    config = make_config("moons", {"data.source": "tests.support.user_code:blobs"} | options)
    return load(config.data, 0)


def samples(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).random((n, 2)), np.arange(n) % 2


def test_a_function_may_return_groups_and_leave_the_split_to_us(monkeypatch):
    groups = np.arange(120) // 4
    data = own_data(monkeypatch, {"all": (*samples(120), groups)})
    sets = [set(part.groups or ()) for part in (data.train, data.val, data.test)]
    assert [len(part) for part in (data.train, data.val, data.test)] == pytest.approx([84, 18, 18], abs=4)
    assert set.union(*sets) == set(map(str, range(30)))
    assert sum(map(len, sets)) == 30
    assert data.split_level == "by group: 30 in all"
    halved = own_data(monkeypatch, {"all": (*samples(120), groups)}, **{"data.split": (50, 0, 50)})
    assert (len(halved.val), len(halved.test)) == (0, pytest.approx(60, abs=4))
    plain = own_data(monkeypatch, {"all": samples(120)})
    assert plain.split_level == "by sample: groups unknown"
    assert (len(plain.train), len(plain.val), len(plain.test)) == (84, 18, 18)
    parts = {"all": (*samples(120), groups), "parts": ["test"] * 20 + [""] * 100}
    given = own_data(monkeypatch, parts)
    assert given.test.groups == tuple(map(str, groups[:20]))
    assert len(given.val) == pytest.approx(15, abs=4)
    parts = {"train": (*samples(40), np.arange(40)), "test": (*samples(20, 1), np.arange(50, 70))}
    assert own_data(monkeypatch, parts).split_level == "by group: 60 in all"
    assert own_data(monkeypatch, {k: v[:2] for k, v in parts.items()}).split_level == "by sample: groups unknown"


@pytest.mark.parametrize(
    ("returned", "options", "message"),
    [
        ({"train": (*samples(4), list("aabb")), "test": (*samples(2), list("bc"))}, {}, "The group b is in both train"),
        (
            {"train": (*samples(4), list("abcd")), "test": (*samples(4), list("dcba"))},
            {},
            "4 groups are in both train and test, such as a: keep",
        ),
        ({"train": (*samples(4), [1, 2]), "test": samples(2)}, {}, "train has 2 groups but 4 samples"),
        ({"train": (*samples(2), [1.5, 2.5]), "test": samples(2)}, {}, "groups of train must be texts or whole"),
        ({"all": samples(9), "test": samples(2)}, {}, 'both "all" and parts'),
        ({"all": samples(2), "parts": ["train", "dev"]}, {}, '"parts" must have train, val, test'),
        ({"train": samples(4), "test": samples(2)}, {"data.split": (80, 10, 10)}, "--data.split has no use"),
        ({"train": samples(4), "test": samples(2)}, {"data.groups": "p[0-9]+"}, "those of train have none"),
        ({"train": samples(4), "test": samples(2)}, {"data.groups": "header"}, "goes with sources whose files"),
    ],
)
def test_what_is_refused(monkeypatch, returned, options, message):
    with pytest.raises(ConfigError, match=message):
        own_data(monkeypatch, returned, **options)


def test_shares_that_are_none():
    for shares in ((70, 30), (0, 50, 50), (100, 0, 0)):
        with pytest.raises(ConfigError, match="needs three shares"):
            make_config("moons", {"data.split": shares})


def named(names: list[str]) -> Split:
    x, y = samples(len(names))
    return Split(torch.from_numpy(x), torch.from_numpy(y), tuple(names))


def test_groups_by_file_and_by_name(tmp_path: Path):
    names = ["a/p1_1.png", "a/p1_2.png", "b/p2_1.png", "b/p10_1.png"]
    assert with_groups("train", named(names), r"(p\d+)_").groups == ("p1", "p1", "p2", "p10")
    assert with_groups("train", named(names), r"^[ab]").groups == ("a", "a", "b", "b")
    file = tmp_path / "groups.csv"
    file.write_text("a/p1_1.png,one\np1_2.png,one\np2_1.png,two\nb/p10_1.png,three\n", encoding="utf-8")
    assert with_groups("train", named(names), str(file)).groups == ("one", "one", "two", "three")
    with pytest.raises(ConfigError, match=r"no group for 1 of the 5 samples of test, such as x\.png"):
        with_groups("test", named([*names, "x.png"]), str(file))
    with pytest.raises(ConfigError, match="no group for 4 of the 4 samples of test"):
        with_groups("test", named(names), "patient")
    with pytest.raises(ConfigError, match="nor a regular expression"):
        with_groups("test", named(names), "(p")
    file.write_text("a,1\na,2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="names a twice, with different groups"):
        with_groups("train", named(names), str(file))
    file.write_text("a,1,2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="write a name and its group"):
        with_groups("train", named(names), str(file))


def test_a_file_of_groups_is_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("groups.csv").write_text("a,1\n", encoding="utf-8")
    plain = make_config("moons")
    found = make_config("moons", {"data.groups": "groups.csv"})
    assert found.data.groups == str(tmp_path / "groups.csv")
    assert found.fingerprint() != plain.fingerprint()


def test_the_content_of_a_file_of_groups_is_part_of_the_fingerprint(tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("a,1\n", encoding="utf-8")
    found = make_config("moons", {"data.groups": str(file)})
    assert from_dict(to_dict(found)) == found
    file.write_text("a,2\n", encoding="utf-8")
    other = make_config("moons", {"data.groups": str(file)})
    assert other.fingerprint() != found.fingerprint()
    with pytest.raises(ConfigError, match=r"groups.csv has changed since it was given .*: bring it back as it was"):
        load(found.data, 0)
    # A changed option means another file, with its own checksum.
    assert with_options(found, {"data.groups": str(file)}) == other
    assert with_options(found, {"data.groups": r"p\d+"}).data.groups_sha256 is None
    file.unlink()
    assert from_dict(to_dict(found)) == found  # results can still be shown


def test_other_weights_have_their_own_checksum(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"a")
    (tmp_path / "b.pt").write_bytes(b"b")
    one, other = (make_config("moons", {"model.weights": str(tmp_path / name)}) for name in ("a.pt", "b.pt"))
    assert with_options(one, {"model.weights": other.model.weights}) == other


def test_rows_are_those_of_the_samples(monkeypatch):
    x, y = samples(4)
    for rows in ([0, 4], [-1, 0]):
        split = Split(torch.from_numpy(x), torch.from_numpy(y[:2]), rows=torch.tensor(rows))
        with pytest.raises(ConfigError, match="rows of train must be from 0 to 3, as x has 4 samples"):
            own_data(monkeypatch, {"train": split, "test": (x, y)})


def test_equal_samples_in_two_parts_are_named():
    x = torch.arange(40, dtype=torch.float32).reshape(20, 2)
    train, val, test = x[:10].clone(), x[10:14].clone(), x[14:].clone()
    test[1], test[2], val[0], train[9] = train[3], train[9], train[3], train[8]

    def part(values: torch.Tensor, name: str) -> Split:
        return Split(values, torch.arange(len(values)) % 2, tuple(f"{name}{i}.png" for i in range(len(values))))

    data = DataSet(part(train, "a"), part(val, "b"), part(test, "c"), None, 2)
    found = equal_samples(data)
    # Of train 8 and 9, which are equal, nothing is said; c2 equals one of them no more.
    assert found == {"count": 2, "pairs": [["b0.png (val)", "a3.png (train)"], ["c1.png (test)", "a3.png (train)"]]}
    (said,) = door_doubts({"equal_samples": found}, [0.1], "linf")
    assert said.startswith(
        "2 validation and test samples equal one of another part (b0.png (val) equals a3.png (train);"
    )
    assert door_doubts({"equal_samples": {"count": "many"}}, [0.1], "linf") == ()
    rows = DataSet(data.train.view(torch.arange(3)), data.val, data.test, None, 2)
    assert equal_samples(rows) == {"count": 1, "pairs": [["c1.png (test)", "b0.png (val)"]]}


def test_views_keep_their_groups():
    split = Split(torch.zeros(3, 2), torch.tensor([0, 1, 0]), groups=("a", "b", None))
    assert split.view(torch.tensor([2, 0])).groups == (None, "a")
    assert split.take(torch.tensor([1])).groups == ("b",)


# ---- the option beside groups that the source has found


def grouped(by: str | None, names: tuple[str, ...] | None = ("p1_a.png", "p2_a.png")) -> Split:
    return Split(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64), names, groups=("one", "two"), grouped_by=by)


def test_an_option_replaces_the_groups_that_a_source_has_found():
    for option in (None, "header", "Patient"):
        assert with_groups("train", grouped("patient"), option).groups == ("one", "two")
    found = with_groups("train", grouped("patient"), r"(p\d)_")
    assert (found.groups, found.grouped_by) == (("p1", "p2"), "group")
    for option, message in (
        ("study", "neither a file nor a column"),
        ("header", "header goes with"),
        ("there/no.csv", "there is no such file"),
        ("a/b", "there is no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_groups("train", grouped(None if option == "header" else "patient"), option)
    with pytest.raises(ConfigError, match="comes with groups and without names: leave it out"):
        with_groups("train", grouped(None, None), "patient")


def test_the_level_is_what_was_used():
    assert split_level({"train": grouped("patient_id")}) == "by patient_id: 2 in all"
    assert split_level({"train": grouped("study"), "test": grouped("group")}) == "by group: 4 in all"
    assert split_level({"train": grouped(None)}) == "by group: 2 in all"


def test_a_file_of_groups_may_name_the_file_of_a_slice(tmp_path: Path):
    file = tmp_path / "groups.csv"
    file.write_text("a/v.nii,one\nw.nii,two\n", encoding="utf-8")
    names = ["a/v.nii slice 1", "a/v.nii slice 12", "b/w.nii slice 1"]
    assert with_groups("train", named(names), str(file)).groups == ("one", "one", "two")


def test_the_test_part_of_named_samples_does_not_depend_on_their_values(monkeypatch):
    names = tuple(f"{i}.png" for i in range(60))
    y = torch.arange(60) % 2

    def tested(side: int) -> tuple[str, ...] | None:
        x = torch.rand(60, 1, side, side, generator=torch.Generator().manual_seed(side))
        return own_data(monkeypatch, {"all": Split(x, y, names)}).test.names

    assert tested(3) == tested(4)


def test_parts_are_compared_whole(monkeypatch):
    with pytest.raises(ConfigError, match='"parts" must have train, val, test'):
        own_data(monkeypatch, {"all": samples(4), "parts": ["training", "train", "test", "val"]})

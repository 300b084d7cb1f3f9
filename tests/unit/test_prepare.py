"""Prepared copies: the same data as from the publishers' files, mapped into memory, whole or not there at all."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import DataConfig
from ima_dist.data import __main__ as command
from ima_dist.data import prepare, prepared, svhn
from ima_dist.data.choosing import hold_out
from ima_dist.data.load import load
from ima_dist.data.types import DataSet, Resident, Split
from tests.support import commands, workers
from tests.support.datafiles import CIFAR_RUN, write_cifar, write_covid, write_idx, write_svhn
from tests.support.fashion_mnist import FASHION_MNIST, needs_fashion_mnist

WRITERS: dict[str, Callable[[Path], Path]] = {
    "fashion_mnist": write_idx,
    "mnist": write_idx,
    "svhn": write_svhn,
    "cifar10": write_cifar,
    "covid_ct": lambda directory: write_covid(directory, 12, 10),
}


def loaded(name: str, directory: Path | None, seed: int = 0, subset: int | None = None) -> DataSet:
    config = make_config(name).data
    where = None if directory is None else str(directory)
    return load(config.model_copy(update={"dir": where, "subset": subset}), seed)


def run(*words: object) -> int:
    return command.main([str(word) for word in words])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A small MNIST in its publishers' format."""
    return write_idx(tmp_path / "files")


@pytest.fixture
def copy(tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Its prepared copy."""
    assert run("prepare", "mnist", "--source", files, "--to", tmp_path / "copy") == 0
    capsys.readouterr()
    return tmp_path / "copy"


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Gives the sentence with which a command is refused, and checks that it has written nothing."""

    def check(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        status = run(*words)
        out, err = capsys.readouterr()
        assert (status, out) == (2, ""), err
        assert err.startswith("error: ")
        assert err.endswith(".\n")
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return check


def same(a: DataSet, b: DataSet) -> None:
    assert a.digest() == b.digest()
    for name in ("train", "val", "test"):
        x, y = getattr(a, name), getattr(b, name)
        assert torch.equal(x.x, y.x)
        assert torch.equal(x.y, y.y)
        assert x.names == y.names
    rest = [(d.box, d.num_classes, d.class_names, d.augment) for d in (a, b)]
    assert rest[0] == rest[1]


# ---- the same data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_prepared_copy_gives_the_same_data_for_every_seed(tmp_path: Path, name: str) -> None:
    files = WRITERS[name](tmp_path / "files")
    prepare.prepare(name, str(files), str(tmp_path / "copy"))
    files.rename(tmp_path / "away")
    for seed in (0, 5):
        same(loaded(name, tmp_path / "copy", seed), loaded(name, tmp_path / "away", seed))
    held_out = [loaded(name, tmp_path / "copy", seed).val.rows for seed in (0, 5)]
    assert not torch.equal(*held_out)
    same(loaded(name, tmp_path / "copy", 3, subset=10), loaded(name, tmp_path / "away", 3, subset=10))


def test_training_on_a_prepared_copy_gives_the_same_weights(tmp_path: Path) -> None:
    """It also shows that nothing writes into the mapped files, which would end the process."""
    files = write_cifar(tmp_path / "files", 10)
    prepare.prepare("cifar10", str(files), str(tmp_path / "copy"))
    states = []
    for directory in (files, tmp_path / "copy"):
        path = tmp_path / f"run-{directory.name}"
        config, _ = workers.start_run(path, "cifar10", data__dir=str(directory), **{**CIFAR_RUN, "epochs": 1})
        workers.train(config, path)
        states.append(workers.final_state(config, path))
    assert workers.largest_difference(states[0][0], states[1][0]) == 0
    assert torch.equal(states[0][1], states[1][1])


def test_copy_is_found_by_its_directory_the_one_above_and_in_the_default_place(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    expected = loaded("mnist", files)
    assert run("prepare", "mnist", "--source", files) == 0
    place = tmp_path / "home" / ".cache" / "ima_dist" / "prepared" / "mnist"
    assert f"mnist: 360 images (0.3 MB) prepared in {place}." in capsys.readouterr().out
    for directory in (None, place, place.parent):
        same(loaded("mnist", directory), expected)
    # It goes before files that would be found without it; a directory that is named goes before it.
    write_idx(tmp_path / "here" / "data" / "MNIST" / "raw", n=120)
    assert len(loaded("mnist", None).test) == 120
    assert len(loaded("mnist", tmp_path / "here" / "data").test) == 60
    with pytest.raises(ConfigError, match=f"{place} is a prepared copy of mnist, not of fashion_mnist"):
        loaded("fashion_mnist", place)


# ---- mapped, not copied --------------------------------------------------------------------------------


def mapped_file(x: torch.Tensor) -> str:
    """The file that is mapped where ``x`` lies in memory, or an empty text."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, last = line.split()
        low, high = (int(part, 16) for part in addresses.split("-"))
        if low <= x.data_ptr() and x.data_ptr() + x.numel() * x.element_size() <= high:
            return last if last.startswith("/") else ""
    return ""


@pytest.mark.parametrize("name", ["mnist", "covid_ct"])
def test_samples_stay_in_the_mapped_file_up_to_the_batch(tmp_path: Path, name: str) -> None:
    files = WRITERS[name](tmp_path / "files")
    prepare.prepare(name, str(files), str(tmp_path / "copy"))
    data, other = loaded(name, tmp_path / "copy"), loaded(name, files)
    for part in ("train", "val", "test"):
        split = getattr(data, part)
        resident = Resident(split, "cpu", torch.float32, data.box)
        arrow = tmp_path / "copy" / ("images.arrow" if name == "covid_ct" else f"{part.replace('val', 'train')}.arrow")
        assert mapped_file(split.stored) == mapped_file(resident.x) == str(arrow)
        assert len(resident) == len(split)
        assert resident.shape == split.x.shape[1:]
        indices = torch.arange(len(split)).flip(0)[::2]
        expected = Resident(getattr(other, part), "cpu", torch.float32, data.box).batch(indices)
        got = resident.batch(indices)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[0], split.x[indices].float() / 255)
        assert torch.equal(got[1], expected[1])
    assert mapped_file(other.train.stored) == ""


def test_holding_out_copies_nothing_and_a_subset_keeps_nothing_else() -> None:
    whole = Split(torch.arange(240, dtype=torch.uint8).view(60, 4), torch.arange(60) % 2)
    rest, held = hold_out(whole, 20, 2, seed=0)
    again, _ = hold_out(rest, 10, 2, seed=1)
    for part in (rest, held, again):
        assert part.stored.data_ptr() == whole.x.data_ptr()
        assert torch.equal(part.x, part.take(torch.arange(len(part))).x)
    taken = held.take(torch.tensor([3, 1]))
    assert taken.stored.shape == (2, 4)
    assert torch.equal(taken.x, held.x[[3, 1]])
    assert set(again.x[:, 0].tolist()) < set(rest.x[:, 0].tolist())


def test_floating_point_that_was_held_out_is_checked_and_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(0, 1, 200, dtype=torch.float64).view(100, 2)
    train, val = hold_out(Split(x, torch.arange(100) % 2), 20, 2, seed=0)
    returned = DataSet(train, val, val, (0.0, 1.0), 2)
    monkeypatch.setattr("ima_dist.data.moons.load", lambda config, seed: returned)
    data = load(DataConfig(source="ima_dist.data.moons:load"), 0)
    assert torch.equal(data.train.x, train.x)
    batch, _ = Resident(val, "cpu", torch.float32, None).batch(torch.tensor([7]))
    assert torch.equal(batch, val.x[[7]].float())
    x[int(val.rows[4])] = torch.nan  # type: ignore[index]
    with pytest.raises(ConfigError, match="x of val has a NaN or infinite value, first in sample 4"):
        load(DataConfig(source="ima_dist.data.moons:load"), 0)


# ---- what is written -----------------------------------------------------------------------------------


def test_manifest_says_what_was_read_and_written(copy: Path, files: Path) -> None:
    manifest = json.loads((copy / "prepared.json").read_text())
    assert (manifest["format"], manifest["name"]) == (1, "mnist")
    for part, rows in (("train", 240), ("test", 120)):
        content = (copy / f"{part}.arrow").read_bytes()
        assert manifest["parts"][part] == {
            "file": f"{part}.arrow",
            "rows": rows,
            "shape": [1, 28, 28],
            "dtype": "uint8",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    found = {f["name"]: (f["bytes"], f["md5"], f["published"]) for f in manifest["sources"]["files"]}
    assert found == {
        p.name: (p.stat().st_size, hashlib.md5(p.read_bytes()).hexdigest(), False) for p in files.iterdir()
    }
    assert sorted(p.name for p in copy.iterdir()) == ["lock", "prepared.json", "test.arrow", "train.arrow"]


def test_arrow_files_can_be_read_by_others(copy: Path) -> None:
    with pa.ipc.open_file(copy / "train.arrow") as reader:
        table = reader.read_all()
    assert table.schema.names == ["image", "label"]
    assert table["image"].type.shape == [1, 28, 28]
    assert table["image"].chunk(0).to_numpy_ndarray().shape == (240, 1, 28, 28)
    assert table["label"].to_pylist() == [i % 10 for i in range(240)]


def test_a_second_call_says_that_it_is_there(
    copy: Path, files: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in copy.iterdir()}
    assert run("prepare", "mnist", "--source", files, "--to", copy) == 0
    assert "mnist has already been prepared in" in (said := capsys.readouterr().out)
    assert said.endswith("from the same files.\n")
    assert {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in copy.iterdir()} == before
    assert "copy of mnist: delete it" in refused("prepare", "fashion_mnist", "--source", files, "--to", copy)
    labels = files / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes())[:-1] + b"\7"))
    assert "copy of other files: delete it" in refused("prepare", "mnist", "--source", files, "--to", copy)


def test_preparing_again_repairs_a_damaged_copy(copy: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = loaded("mnist", files)
    for name in ("train.arrow", "test.arrow", "prepared.json"):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        mapped = prepared.read(copy, "mnist", 10)["train"].x if name != "prepared.json" else None
        assert run("prepare", "mnist", "--source", files, "--to", copy) == 0
        assert "already" not in capsys.readouterr().out
        assert run("verify", copy) == 0
        same(loaded("mnist", copy), expected)
        assert mapped is None or len(mapped.sum((1, 2, 3))) == 240


# ---- published files and others ------------------------------------------------------------------------


@needs_fashion_mnist
def test_debians_fashion_mnist_is_the_published_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is compressed in another way, so that only the content can tell."""
    assert run("prepare", "fashion_mnist", "--source", FASHION_MNIST, "--to", tmp_path / "copy") == 0
    out, err = capsys.readouterr()
    assert "fashion_mnist: 70000 images (55.4 MB) prepared in" in out
    assert err == ""
    assert loaded("fashion_mnist", tmp_path / "copy").digest() == loaded("fashion_mnist", FASHION_MNIST).digest()


def test_checksums_are_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision").datasets
    lists = {
        "mnist": torchvision.MNIST.resources,
        "fashion_mnist": torchvision.FashionMNIST.resources,
        "svhn": [torchvision.SVHN.split_list[split][1:] for split in ("train", "test")],
        "cifar10": torchvision.CIFAR10.train_list + torchvision.CIFAR10.test_list,
    }
    for name, expected in lists.items():
        known = prepare.PUBLISHED[name].checksums
        assert {file: md5 for file, (_, md5) in known.items() if file in dict(expected)} == dict(expected)
    assert prepare.PUBLISHED["covid_ct"].checksums == {}


def test_other_files_are_used_with_a_warning_and_damaged_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_svhn(tmp_path / "files")
    words = ("prepare", "svhn", "--source", files, "--to", tmp_path / "copy")
    sums = {p.name: (p.stat().st_size, hashlib.md5(p.read_bytes()).hexdigest()) for p in files.iterdir()}
    checksums = {**sums, "train_32x32.mat": (999, "0" * 32)}
    monkeypatch.setitem(prepare.PUBLISHED, "svhn", dataclasses.replace(svhn.SVHN, checksums=checksums))
    assert run(*words) == 0
    warning = "warning: train_32x32.mat: not the published files, by checksum; used anyway.\n"
    assert capsys.readouterr().err == warning
    checksums["test_32x32.mat"] = (sums["test_32x32.mat"][0], "0" * 32)
    sentence = refused(*words[:-1], tmp_path / "new")
    assert f"{files}/test_32x32.mat is damaged (it has the size of the published file, but not its MD5" in sentence
    assert "pass --source with a directory of whole files, or pass --source download" in sentence


def test_covid_ct_needs_no_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_covid(tmp_path / "files", 4, 3)
    assert run("prepare", "covid_ct", "--source", files, "--to", tmp_path / "copy") == 0
    out, err = capsys.readouterr()
    assert out.startswith("covid_ct: 7 images")
    assert err == ""
    sources = prepared.read_manifest(tmp_path / "copy")["sources"]["files"]
    assert [f["name"] for f in sources] == [
        *(f"non-COVID/non-COVID ({i}).png" for i in (1, 2, 3)),
        *(f"COVID/COVID ({i}).png" for i in (1, 2, 3, 4)),
    ]
    assert {f["published"] for f in sources} == {None}


# ---- damaged copies ------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def remove(path: Path) -> None:
    path.unlink()


def overwrite(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def swap(path: Path) -> None:
    """Labels above 9, in a file of the same size."""
    content = path.read_bytes()
    labels = b"".join(i.to_bytes(8, "little") for i in (0, 1, 2, 3))
    path.write_bytes(content.replace(labels, labels[:-8] + (10).to_bytes(8, "little")))


def no_json(path: Path) -> None:
    path.write_text(path.read_text()[:-5])


def a_list(path: Path) -> None:
    path.write_text("[]")


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace('"rows": 240', '"rows": 239'))


def newer(path: Path) -> None:
    path.write_text(path.read_text().replace('"format": 1', '"format": 3'))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train.arrow", cut, " bytes instead of "),
        ("test.arrow", grow, " bytes instead of "),
        ("test.arrow", remove, "cannot be read (FileNotFoundError"),
        ("train.arrow", overwrite, "cannot be read as an Arrow file"),
        ("test.arrow", swap, "has a label outside 0 to 9"),
        ("prepared.json", no_json, "cannot be read (JSONDecodeError"),
        ("prepared.json", overwrite, "cannot be read (JSONDecodeError"),
        ("prepared.json", a_list, "is damaged"),
        ("prepared.json", edited, "its checksum is wrong"),
        ("prepared.json", newer, "has version 3 of the format, not 1 or 2"),
    ],
)
def test_damaged_copy_is_named_with_what_to_do(
    copy: Path, refused: Callable[..., str], file: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy / file)
    with pytest.raises(ConfigError) as caught:
        loaded("mnist", copy)
    sentence = str(caught.value)
    assert sentence.startswith(f"{copy / file} ")
    assert message in sentence
    assert f"again with python -m ima_dist.data prepare mnist --source DIR --to {copy}, or delete" in sentence
    assert "\n" not in sentence
    assert str(copy / file) in refused("verify", copy)


def test_verify_finds_what_a_start_does_not(
    tmp_path: Path, copy: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare.verify(str(copy))[0] == copy
    image = loaded("mnist", copy).test.x[60].numpy().tobytes()
    content = (copy / "test.arrow").read_bytes()
    changed = bytes([image[0] ^ 1]) + image[1:]
    (copy / "test.arrow").write_bytes(content.replace(image, changed))
    assert loaded("mnist", copy).test.x[60].numpy().tobytes() == changed
    assert f"{copy}/test.arrow is damaged (its checksum is wrong)" in refused("verify", copy)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert "holds no prepared data (prepared.json is missing): prepare" in refused("verify", "mnist")
    assert "neither a directory nor one of" in refused("verify", tmp_path / "nowhere")


# ---- mistakes ------------------------------------------------------------------------------------------


def test_mistakes_get_one_sentence(tmp_path: Path, files: Path, refused: Callable[..., str]) -> None:
    to = ("--to", tmp_path / "copy")
    assert "moons needs no preparation" in refused("prepare", "moons")
    assert "did you mean mnist?" in refused("prepare", "mnits", "--source", files, *to)
    assert "published files with --source DIR" in refused("prepare", "mnist", *to)
    assert "Unknown option '--from'" in refused("prepare", "mnist", "--source", files, "--from", "x")
    assert "COMMAND" in refused()
    assert "--source nowhere: there is no such directory" in refused("prepare", "mnist", "--source", "nowhere", *to)
    assert "pass --source download" in refused("prepare", "svhn", "--source", files, *to)
    (files / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>")
    assert "train-labels-idx1-ubyte.gz does not begin like an idx file" in refused(
        "prepare", "mnist", "--source", files, *to
    )


def test_target_that_cannot_be_written(tmp_path: Path, files: Path, refused: Callable[..., str]) -> None:
    words = ("prepare", "mnist", "--source", files, "--to")
    occupied = tmp_path / "file"
    occupied.write_text("kept")
    for target in (occupied, occupied / "below", Path("/proc/copy")):
        assert f"{target} cannot be written" in refused(*words, target)
    assert "holds other files (t10k-images-idx3-ubyte.gz): name a new" in refused(*words, files)
    for target in (tmp_path / "new", tmp_path / "empty"):
        if target.name == "empty":
            target.mkdir()
            (target / "lock").touch()
        with files_no_larger_than(100_000):
            sentence = refused(*words, target)
        assert f"{target} cannot be written (OSError" in sentence
        assert "make room" in sentence
    assert run(*words, tmp_path / "new") == 0


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- interruptions and several at once -----------------------------------------------------------------


def in_child(function: Callable[..., Any], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def prepare_and_die(files: Path, target: Path, module: Any, name: str, calls: int) -> None:
    """Killed without warning at the call number ``calls`` of a function."""
    real, left = getattr(module, name), [calls]

    def counted(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(module, name, counted)
    prepare.prepare("mnist", str(files), str(target))


@pytest.mark.parametrize(("name", "calls"), [("fsync", 1), ("fsync", 2), ("fsync", 3), ("replace", 2), ("replace", 3)])
@pytest.mark.parametrize("existing", [False, True])
def test_kill_in_the_middle_leaves_nothing_half(
    tmp_path: Path, files: Path, copy: Path, name: str, calls: int, existing: bool
) -> None:
    expected = loaded("mnist", files).digest()
    target = copy if existing else tmp_path / "new"
    if existing:  # a damaged copy is replaced
        cut(copy / "test.arrow")
    process = in_child(prepare_and_die, files, target, os, name, calls)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    # No copy, or the damaged one as it was, never a mixture.
    with pytest.raises(ConfigError, match=r"test.arrow is damaged|train-images-idx3-ubyte.gz is in none of"):
        loaded("mnist", target)
    prepare.prepare("mnist", str(files), str(target))
    assert sorted(p.name for p in target.iterdir()) == ["lock", "prepared.json", "test.arrow", "train.arrow"]
    assert loaded("mnist", target).digest() == expected


def prepare_together(files: Path, target: Path, others: Any, answers: Any) -> None:
    """All have read the files before any of them writes."""
    mnist = prepare.PUBLISHED["mnist"]

    def read(paths: list[Path]) -> dict[str, Split]:
        parts = mnist.read(paths)
        others.wait(60)
        return parts

    prepare.PUBLISHED["mnist"] = dataclasses.replace(mnist, read=read)
    answers.put(prepare.prepare("mnist", str(files), str(target)).already)


def test_several_at_once_make_one_copy(tmp_path: Path, files: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers, others = context.SimpleQueue(), context.Barrier(3)
    processes = [in_child(prepare_together, files, tmp_path / "new", others, answers) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(answers.get() for _ in processes) == [False, True, True]
    assert loaded("mnist", tmp_path / "new").digest() == loaded("mnist", files).digest()


def test_the_real_command_needs_no_ray(tmp_path: Path, files: Path) -> None:
    code = (
        "import sys; from ima_dist.data.__main__ import main; status = main(sys.argv[1:]); "
        "print(status, [m for m in ('ray', 'torchvision', 'ima_dist.engine', 'ima_dist.methods') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", "mnist", "--source", "files", "--to", "new"],
        cwd=tmp_path,
        env=commands.environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "mnist: 360 images (0.3 MB) prepared in new.\n0 []\n"
    assert done.stderr.startswith("warning: train-images-idx3-ubyte.gz, ")

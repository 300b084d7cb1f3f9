"""Where samples are while they are used, and the pipeline that reads them ahead."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import DataConfig
from ima_dist.data import load as loading
from ima_dist.data import pipeline
from ima_dist.data.encoded import Encoded
from ima_dist.data.free_memory import free_memory
from ima_dist.data.mapped import NpyFile, from_array, is_mapped
from ima_dist.data.pipeline import Streamed, in_memory, stream
from ima_dist.data.place import choose, place
from ima_dist.data.types import DataSet, Resident, Split, Unreadable
from tests.support.small_images import Compressed

CPU, CARD = torch.device("cpu"), torch.device("cuda")
GB = 10**9


def images(n: int = 50) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def labels(n: int) -> torch.Tensor:
    return torch.arange(n) % 3


def splits(tmp_path: Path) -> dict[str, tuple[Split, torch.Tensor]]:
    """Splits in every form, and the samples that they hold."""
    x = images()
    values = x.double() / 7
    np.save(tmp_path / "x.npy", values.numpy())
    rows = torch.arange(49, -1, -2)
    return {
        "bytes": (Split(x, labels(50)), x),
        "rows": (Split(x, labels(25), rows=rows), x[rows]),
        "strided": (Split(x[::2], labels(25)), x[::2]),
        "compressed": (Split(Compressed(x), labels(50)), x),
        "compressed rows": (Split(Compressed(x), labels(25), rows=rows), x[rows]),
        "floats": (Split(values, labels(50)), values),
        "file": (Split(NpyFile(tmp_path / "x.npy"), labels(50)), values),
        "file rows": (Split(NpyFile(tmp_path / "x.npy"), labels(25), rows=rows), values[rows]),
        "decoded": (Split(decoded(colours()), labels(50)), colours()),
        "decoded rows": (Split(decoded(colours()), labels(25), rows=rows), colours()[rows]),
        "permuted": (Split(Permuted(colours()), labels(50)), colours()),
    }


FORMS = (
    "bytes", "rows", "strided", "compressed", "compressed rows", "floats", "file", "file rows", "decoded",
    "decoded rows", "permuted",
)  # fmt: skip


def colours() -> torch.Tensor:
    return images(150).view(50, 3, 6, 5)


class InOrder:
    """The contents of images (N, 3, 6, 5), in the order of decoders: (height, width, channels)."""

    def __init__(self, x: torch.Tensor) -> None:
        self.contents = [image.permute(1, 2, 0).numpy().tobytes() for image in x]

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, row: int) -> bytes:
        return self.contents[row]

    def name(self, row: int) -> str:
        return str(row)


def decoded(x: torch.Tensor) -> Encoded:
    def decode(content: bytes, name: str) -> np.ndarray:
        return np.frombuffer(content, np.uint8).reshape(6, 5, 3).transpose(2, 0, 1)

    return Encoded(InOrder(x), decode, (3, 6, 5), torch.uint8, colours_last=True)


class Permuted(Compressed):
    """Samples of the user's that do not lie in memory as their shape says."""

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        return super().fetch(rows).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def reading() -> list[str]:
    """Names of the threads that read samples."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("samples")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_are_those_of_a_resident_split(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    split, x = splits(tmp_path)[form]
    resident, streamed = Resident(split, "cpu", dtype, None), Streamed(split, "cpu", dtype, None)
    assert torch.equal(split.x, x)
    assert torch.equal(in_memory(split).x, x)
    parts = [torch.tensor(part) for part in ([3, 1, 2], [], [24], list(range(25)))]
    parts = [part.long() for part in parts]
    for part, a, b in zip(parts, resident.batches(parts), streamed.batches(parts), strict=True):
        assert torch.equal(a.indices, part)
        for one, other in zip(a, b, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
            assert one.stride() == other.stride()  # a network's rounding may depend on it
        again = streamed.batch(part)
        assert torch.equal(again[0], a.x)
        assert again[0].is_contiguous()
        assert torch.equal(again[1], a.y)
    assert not reading()


def test_digests_do_not_depend_on_how_samples_are_kept(tmp_path: Path) -> None:
    found = {form: split.digest() for form, (split, _) in splits(tmp_path).items()}
    assert found["bytes"] == found["compressed"]
    assert found["rows"] == found["compressed rows"]
    assert found["floats"] == found["file"]
    assert found["decoded"] == found["permuted"]
    assert len(set(found.values())) == 7


def test_only_a_few_batches_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    split, taken = Split(images(), labels(50)), itertools.count()

    def parts() -> Iterator[torch.Tensor]:
        for first in range(50):
            next(taken)
            yield torch.tensor([first])

    def ahead() -> int:
        before = int(repr(taken)[6:-1])
        with contextlib.closing(stream(split, parts())) as found:
            next(found)
        return int(repr(taken)[6:-1]) - before

    assert ahead() == 1 + pipeline._AHEAD
    monkeypatch.setattr(pipeline, "_AHEAD_BYTES", 1)
    assert ahead() == 2  # one in use, one ahead
    assert not reading()


def test_threads_end_with_a_consumer_that_fails() -> None:
    streamed = Streamed(Split(Compressed(images()), labels(50)), "cpu", torch.float32, None)

    def consume() -> None:
        with contextlib.closing(streamed.batches(torch.arange(50).split(5))) as batches:
            for _ in batches:
                assert reading()
                raise KeyError("a mistake")

    with pytest.raises(KeyError):
        consume()
    assert not reading()


def test_what_can_no_longer_be_read_is_one_sentence(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images().double().numpy())
    split = Split(NpyFile(tmp_path / "x.npy"), labels(50))
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(2000)
    streamed = Streamed(split, "cpu", torch.float64, None)
    with pytest.raises(
        Unreadable, match=r"the data can no longer be read \(ValueError: .*x.npy is shorter than it was"
    ):
        list(streamed.batches(torch.arange(50).split(10)))
    (tmp_path / "x.npy").unlink()
    with pytest.raises(Unreadable, match=r"read \(FileNotFoundError: .*: bring the files back as they were$"):
        streamed.batch(torch.arange(2))
    assert not reading()

    class Other(Compressed):
        def fetch(self, rows: np.ndarray) -> torch.Tensor:
            return super().fetch(rows).float()

    with pytest.raises(Unreadable, match=r"the data have changed \(a sample is torch.float32 \(1, 6, 5\) now\)"):
        list(stream(Split(Other(images()), labels(50)), [torch.arange(3)]))


# ---- the choice ----------------------------------------------------------------------------------------


def large(x: Any = None, **options: Any) -> Split:
    """10 GB of uint8 images, of which nothing is in memory."""
    x = torch.zeros(1, dtype=torch.uint8).expand(10, 1000, 1000, 1000) if x is None else x
    return Split(x, labels(10), **options)


class Remote:
    shape, dtype = (1000, 1000, 1000), torch.uint8

    def __len__(self) -> int:
        return 10

    def fetch(self, rows: np.ndarray) -> torch.Tensor:
        raise AssertionError("nothing may be read before the place is chosen")


@pytest.mark.parametrize(
    ("split", "device", "room", "host", "place", "said"),
    [
        (large(), CPU, 1, 1, "device", "held in memory"),
        (large(mapped=True), CPU, 1, 1, "device", "held in memory"),
        (large(Remote()), CPU, 24 * GB, 24 * GB, "device", "held in memory"),
        (large(Remote()), CPU, 18 * GB, 18 * GB, "disk", "read from the disk batch by batch"),
        (large(), CARD, 24 * GB, 1, "device", "held in the card's memory"),
        (large(), CARD, 18 * GB, 1, "host", "in the host's memory, copied batch by batch"),
        (large(mapped=True), CARD, 18 * GB, 18 * GB, "disk", "read from the disk"),
        (large(mapped=True), CARD, 18 * GB, 24 * GB, "host", "in the host's memory"),
        (large(Remote()), CARD, 18 * GB, 18 * GB, "disk", "read from the disk"),
    ],
)
def test_auto_goes_by_what_is_free(
    split: Split, device: torch.device, room: int, host: int, place: str, said: str
) -> None:
    where, sentence = choose([split], "auto", device, torch.float32, room, host, workers=1)
    assert where == place
    assert sentence is not None
    assert sentence.startswith("Data of 10 GB: ")
    assert said in sentence


def test_a_place_without_room_is_refused() -> None:
    for where, device in (("device", CARD), ("host", CARD), ("host", CPU), ("device", CPU)):
        with pytest.raises(
            ConfigError, match=f"--data.place {where} needs 10 GB of memory, and 9 GB are free for each"
        ):
            choose([large(Remote())], where, device, torch.float32, 9 * GB, 9 * GB, workers=2)
        assert choose([large(Remote())], where, device, torch.float32, 11 * GB, 11 * GB, workers=2)[0] == where
    assert choose([large(Remote())], "disk", CARD, torch.float32, 1, 1, workers=1)[0] == "disk"


def test_a_small_set_on_the_cpu_stays_where_it_is_without_a_word() -> None:
    split = Split(images(), labels(50))
    placed = place([split], "auto", CPU, torch.float32, None)
    assert placed.sentence is None
    (samples,) = placed.samples
    assert isinstance(samples, Resident)
    assert samples.x is split.stored
    for asked, kind in (("device", Resident), ("host", Streamed), ("disk", Streamed)):
        assert (
            type(place([Split(Compressed(images()), labels(50))], asked, CPU, torch.float32, None).samples[0]) is kind
        )


def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    whole = free_memory(tmp_path / "missing")
    assert whole > 0
    (tmp_path / "cgroup").write_text("0::/slurm/job\n")
    group = tmp_path / "slurm" / "job"
    group.mkdir(parents=True)
    for name, text in {"max": "max", "current": "5000", "stat": "anon 1\ninactive_file 700"}.items():
        (group / f"memory.{name}").write_text(text)
        (group.parent / f"memory.{name}").write_text(text)
    assert abs(free_memory(tmp_path / "cgroup", tmp_path) - whole) < whole / 2
    (group.parent / "memory.max").write_text("9000")
    assert free_memory(tmp_path / "cgroup", tmp_path) == 9000 - 5000 + 700
    (tmp_path / "cgroup").write_text("4:cpu,memory:/job\n2:cpu:/other\n")
    old = tmp_path / "memory" / "job"
    old.mkdir(parents=True)
    for name, text in {"limit_in_bytes": "800", "usage_in_bytes": "500", "stat": "total_inactive_file 50"}.items():
        (old / f"memory.{name}").write_text(text)
    assert free_memory(tmp_path / "cgroup", tmp_path) == 350


# ---- arrays --------------------------------------------------------------------------------------------


def test_mapped_arrays_are_used_without_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(40.0).reshape(10, 4))
    for mode in ("r", "c"):
        mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
        for array in (mapped, mapped[2:7]):
            assert is_mapped(array)
            assert from_array(array).data_ptr() == array.__array_interface__["data"][0]
        assert not is_mapped(mapped[::2])
        assert torch.equal(from_array(mapped[::-1]), torch.arange(40.0, dtype=torch.float64).view(10, 4).flip(0))
    assert not is_mapped(np.zeros(3))
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    assert from_array(frozen).data_ptr() == frozen.__array_interface__["data"][0]


def test_a_users_mapped_arrays_stay_in_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 400).reshape(100, 4))
    x, y = np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(100) % 2
    monkeypatch.setattr(
        loading, "resolve_reference", lambda *_: lambda config, seed: {"train": (x, y), "test": (x[:40], y[:40])}
    )
    data = loading.load(DataConfig(source="mine:load", subset=60), 0)
    assert data.train.mapped
    assert data.train.on_disk
    assert len(data.train) == 60
    assert data.train.stored.data_ptr() == x.__array_interface__["data"][0]  # type: ignore[union-attr]
    resident = Resident(data.train, "cpu", torch.float64, data.box)
    assert resident.x.data_ptr() == data.train.stored.data_ptr()  # type: ignore[union-attr]
    assert torch.equal(resident.batch(torch.arange(60))[0], data.train.x)


def test_samples_that_are_fetched_are_loaded_without_reading_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Counted(Compressed):
        def fetch(self, rows: np.ndarray) -> torch.Tensor:
            read.extend(rows.tolist())
            return super().fetch(rows)

    split = Split(Counted(images(2000)), labels(2000))
    data = DataSet(split, split.view(torch.arange(0)), split, None, 3)
    monkeypatch.setattr(loading, "resolve_reference", lambda *_: lambda config, seed: data)
    found = loading.load(DataConfig(source="mine:load", subset=1800), 0)
    assert read == []
    assert found.box == (0.0, 1.0)
    assert found.train.on_disk
    found.digest()
    found.digest()
    assert len(read) == 2 * 512


def test_npy_files_are_read_row_by_row(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(24, dtype=np.float32).reshape(6, 4))
    samples = NpyFile(tmp_path / "x.npy")
    assert (len(samples), samples.shape, samples.dtype) == (6, (4,), torch.float32)
    assert samples.fetch(np.array([5, 0, 5])).tolist() == [[20, 21, 22, 23], [0, 1, 2, 3], [20, 21, 22, 23]]
    assert samples.fetch(np.zeros(0, np.int64)).shape == (0, 4)
    np.save(tmp_path / "f.npy", np.asfortranarray(np.zeros((3, 4))))
    with pytest.raises(ValueError, match="C order"):
        NpyFile(tmp_path / "f.npy")

"""Published data sets: finding and fetching their files, reading them, and the prepared copy that may replace them."""

import http.client
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ima_dist.config.errors import ConfigError, DataWarning, first_line, printable
from ima_dist.config.schema import DataConfig
from ima_dist.data import prepared
from ima_dist.data.choosing import hold_out
from ima_dist.data.types import UINT8_BOX, DataSet, Split

Download = tuple[list[str], str, str]  # addresses to try in turn, name of the file there, its MD5 checksum


class Unfit(ConfigError):
    """A file or folder is whole, but not what is needed; the message says what to do, so that no hint follows."""


@dataclass(frozen=True)
class Published:
    """The part of a data set that does not depend on the seed.

    Attributes:
        name: as in the preset. title: for messages. class_names: one for each label.
        names: files or folders, all needed.
        spellings: other names under which each is found, in this order; of files only. suffix: of the fetched files.
        cache: directory in ~/.cache/ima_dist.
        layouts: subdirectories of ``--data.dir`` to search, in this order; the first is torchvision's layout.
        data_layouts: the same for ./data. elsewhere: other directories to search.
        hint: what to do if files are missing or damaged, as the end of a sentence.
        read: paths of ``names`` -> parts ("train" and "test", "val" too if published, or all in one), x uint8; raises
            ConfigError without a full stop if a file is damaged.
        checksums: size in bytes and MD5 checksum of the published files by name, if known.
        contents: the files read at a path, in order.
        downloads: gives the files to fetch; None if they cannot be fetched.
        unpack: called with a fetched file and an empty directory, in which it leaves what is needed of the file; None
            if the file itself is needed.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    cache: str
    layouts: tuple[str, ...]
    data_layouts: tuple[str, ...]
    hint: str
    read: Callable[[list[Path]], dict[str, Split]]
    elsewhere: tuple[str, ...] = ()
    spellings: Callable[[str], Iterable[str]] | None = None
    suffix: str = ""
    checksums: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    contents: Callable[[Path], list[Path]] = lambda path: [path]
    downloads: Callable[[], Iterable[Download]] | None = None
    unpack: Callable[[Path, Path], None] | None = None

    def load(self, config: DataConfig) -> dict[str, Split]:
        """The parts, from a prepared copy if there is one, else from the genuine files. Raises ConfigError."""
        directory = prepared.locate(self.name, config)
        if directory is not None:
            return prepared.read(directory, self.name, len(self.class_names))
        return self.read_files(self.find(config))

    def data_set(self, config: DataConfig, seed: int, val: Callable[[int], int], augment: bool = False) -> DataSet:
        """``load`` with ``val(N)`` of the N training images held out, class-balanced, by ``seed``."""
        parts, classes = self.load(config), len(self.class_names)
        wanted = val(len(parts["train"]))
        train, held_out = hold_out(parts["train"], wanted, classes, seed)
        if len(held_out) < wanted:
            text = (
                f"--data.val-size asks for {wanted:,} validation images: {len(held_out):,} are held out, since no "
                "class gives up more than half of its images"
            )
            warnings.warn(DataWarning(f"{self.title}: {text}."), stacklevel=2)
        return DataSet(train, held_out, parts["test"], UINT8_BOX, classes, self.class_names, augment)

    def read_files(self, paths: list[Path]) -> dict[str, Split]:
        """The parts from genuine files. Raises ConfigError naming the one that is damaged."""
        try:
            return self.read(paths)
        except ConfigError as e:
            raise self.damaged(e) from e.__cause__

    def damaged(self, error: ConfigError) -> ConfigError:
        """``error``, whose message has no full stop, followed by the hint."""
        remedy = "" if isinstance(error, Unfit) else f": {self.hint}"
        return ConfigError(printable(f"{self.title}: {error}{remedy}."))

    def find(self, config: DataConfig) -> list[Path]:
        """The paths of ``names``, in that order, all in one directory.

        Searches ``config.dir``, or without it ./data, ~/.cache/ima_dist and ``elsewhere``. If they are in none of
        these and ``config.download`` is set, the files that are lacking are fetched.
        Raises ConfigError, naming the missing file and the directories, if they are not found or cannot be fetched.
        """
        cache = Path.home() / ".cache" / "ima_dist" / self.cache
        downloads = self.downloads if config.download else None
        if config.dir is not None:
            root = Path(config.dir).expanduser()
            if not os.path.isdir(root) and downloads is None:
                raise ConfigError(printable(f"--data.dir {config.dir}: there is no such directory."))
            directories = [root / layout for layout in self.layouts]
            target = directories[0]
        else:
            directories = [Path("data", layout) for layout in self.data_layouts]
            directories += [cache, *(Path(place).expanduser() for place in self.elsewhere)]
            target = cache
        present = {directory: self._present(directory) for directory in directories}
        for found in present.values():
            if len(found) == len(self.names):
                return list(found.values())
        if downloads is not None:
            there = self._present(target)
            for urls, name, md5 in downloads():
                if name.removesuffix(self.suffix) not in there:
                    self._fetch(urls, name, md5, target)
            return list(self._present(target).values())
        for directory, found in present.items():
            if found:
                missing = next(name for name in self.names if name not in found)
                raise self.damaged(ConfigError(f"{directory / missing}{self.suffix} is missing"))
        looked = ", ".join(str(d) for d in directories)
        raise self.damaged(ConfigError(f"{self.names[0]}{self.suffix} is in none of {looked}"))

    def _present(self, directory: Path) -> dict[str, Path]:
        found = {}
        for name in self.names:
            candidates = (name,) if self.spellings is None else self.spellings(name)
            exists = os.path.exists if self.spellings is None else os.path.isfile
            path = next((directory / candidate for candidate in candidates if exists(directory / candidate)), None)
            if path is not None:
                found[name] = path
        return found

    def _fetch(self, urls: list[str], name: str, md5: str, target: Path) -> None:
        """Fetch ``name`` from the first of ``urls`` that works, checked against its checksum.

        Raises ConfigError if no address works or the checksum is wrong.
        """
        # torchvision takes seconds to import, and only a download needs it.
        from torchvision.datasets.utils import download_url

        failure: Exception | None = None
        for url in urls:
            try:
                target.mkdir(parents=True, exist_ok=True)
                # Fetched aside and moved, so that an interruption leaves no half file under the final name.
                with tempfile.TemporaryDirectory(dir=target) as aside:
                    download_url(url, aside, name, md5)
                    needed = [Path(aside, name)]
                    if self.unpack is not None:
                        unpacked = Path(aside, "unpacked")
                        unpacked.mkdir()
                        self.unpack(Path(aside, name), unpacked)
                        needed = sorted(unpacked.iterdir())
                    for path in needed:
                        if not (target / path.name).exists():  # a file of the user's stays as it is
                            os.replace(path, target / path.name)
                    return
            except (OSError, RuntimeError, http.client.HTTPException) as e:
                failure = e
        raise ConfigError(
            f"{self.title}: {name} could not be fetched from {' or '.join(urls)} "
            f"({first_line(failure) if failure else 'no address'}): copy the file to {target} yourself."
        ) from failure

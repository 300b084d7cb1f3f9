"""A published data set: its files, how to read them, and the prepared copy that may replace them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import DataConfig
from ima_dist.data import prepared
from ima_dist.data.choosing import hold_out
from ima_dist.data.files import Files, find
from ima_dist.data.types import UINT8_BOX, DataSet, Split


@dataclass(frozen=True)
class Published:
    """The part of a data set that does not depend on the seed.

    name: as in the preset. files: where they are, and their checksums. class_names: one for each label.
    read: paths of ``files.names`` -> parts ("train" and "test", or all in one), x uint8; raises ConfigError
        without a full stop if a file is damaged. fetch: downloads the files that a directory lacks, or None.
    inside: the files read at a path, in order.
    """

    name: str
    files: Files
    class_names: tuple[str, ...]
    read: Callable[[list[Path]], dict[str, Split]]
    fetch: Callable[[Path], None] | None = None
    inside: Callable[[Path], list[Path]] = lambda path: [path]

    def load(self, config: DataConfig) -> dict[str, Split]:
        """The parts, from a prepared copy if there is one, else from the genuine files. Raises ConfigError."""
        directory = prepared.locate(self.name, config)
        if directory is not None:
            return prepared.read(directory, self.name, len(self.class_names))
        return self.read_files(self.find(config))

    def data_set(self, config: DataConfig, seed: int, val: Callable[[int], int], augment: bool = False) -> DataSet:
        """``load`` with ``val(N)`` of the N training images held out, class-balanced, by ``seed``."""
        parts, classes = self.load(config), len(self.class_names)
        train, held_out = hold_out(parts["train"], val(len(parts["train"])), classes, seed)
        return DataSet(train, held_out, parts["test"], UINT8_BOX, classes, self.class_names, augment)

    def find(self, config: DataConfig) -> list[Path]:
        """Paths of ``files.names``. Raises ConfigError if they are missing and cannot be fetched."""
        return find(self.files, config, self.fetch)

    def read_files(self, paths: list[Path]) -> dict[str, Split]:
        """The parts from genuine files. Raises ConfigError naming the one that is damaged."""
        try:
            return self.read(paths)
        except ConfigError as e:
            raise self.files.damaged(e) from e.__cause__

"""Finding the files of a data set, and fetching missing ones."""

import http.client
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import DataConfig


@dataclass(frozen=True)
class Files:
    """The files of one data set.

    names: files or folders, all needed. Each may have ``suffix`` added (".gz").
    cache: directory in ~/.cache/ima_dist.
    inside: subdirectories of ``--data.dir`` to search, in this order; the first is torchvision's layout.
    inside_data: the same for ./data.
    elsewhere: other directories to search.
    hint: what to do if files are missing or damaged, as the end of a sentence.
    published: size in bytes and MD5 checksum of the published files by name, if known.
    """

    title: str
    names: tuple[str, ...]
    cache: str
    hint: str
    inside: tuple[str, ...] = ("",)
    inside_data: tuple[str, ...] = ("",)
    elsewhere: tuple[str, ...] = ()
    suffix: str = ""
    published: dict[str, tuple[int, str]] = field(default_factory=dict)

    def damaged(self, error: ConfigError) -> ConfigError:
        """``error``, whose message has no full stop, followed by the hint."""
        return ConfigError(f"{self.title}: {error}: {self.hint}.")


def find(files: Files, config: DataConfig, fetch: Callable[[Path], None] | None = None) -> list[Path]:
    """The paths of ``files.names``, in that order, all in one directory.

    Searches ``config.dir``, or without it ./data, ~/.cache/ima_dist and ``files.elsewhere``. If they are in none of
    these and ``config.download`` is set, ``fetch`` is called with a directory, to add the files that it lacks.
    Raises ConfigError, naming the missing file and the directories, if they are not found.
    """
    cache = Path.home() / ".cache" / "ima_dist" / files.cache
    if config.dir is not None:
        root = Path(config.dir).expanduser()
        if not root.is_dir() and not (config.download and fetch):
            raise ConfigError(f"--data.dir {config.dir}: there is no such directory.")
        directories = [root / inside for inside in files.inside]
        target = directories[0]
    else:
        directories = [Path("data", inside) for inside in files.inside_data]
        directories += [cache, *map(Path, files.elsewhere)]
        target = cache
    for directory in directories:
        found = _present(files, directory)
        if len(found) == len(files.names):
            return list(found.values())
    if config.download and fetch:
        fetch(target)
        return list(_present(files, target).values())
    for directory in directories:
        found = _present(files, directory)
        if found:
            missing = next(name for name in files.names if name not in found)
            raise ConfigError(f"{files.title}: {directory / missing}{files.suffix} is missing: {files.hint}.")
    looked = ", ".join(str(d) for d in directories)
    raise ConfigError(f"{files.title}: {files.names[0]}{files.suffix} is in none of {looked}: {files.hint}.")


def _present(files: Files, directory: Path) -> dict[str, Path]:
    found = {}
    for name in files.names:
        for candidate in dict.fromkeys((name, name + files.suffix)):
            if (directory / candidate).exists():
                found[name] = directory / candidate
                break
    return found


def fetch_file(
    title: str,
    urls: Sequence[str],
    name: str,
    md5: str,
    target: Path,
    unpack: Callable[[Path, Path], None] | None = None,
) -> None:
    """Fetch ``name`` from the first of ``urls`` that works into ``target``, checked against its checksum.

    ``unpack`` is called with (file, empty directory) and leaves in the directory what should go to ``target`` in
    place of the file. Raises ConfigError if no address works or the checksum is wrong.
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
                if unpack is None:
                    os.replace(Path(aside, name), target / name)
                    return
                unpacked = Path(aside, "unpacked")
                unpacked.mkdir()
                unpack(Path(aside, name), unpacked)
                for path in sorted(unpacked.iterdir()):
                    os.replace(path, target / path.name)
                return
        except (OSError, RuntimeError, http.client.HTTPException) as e:
            failure = e
    raise ConfigError(
        f"{title}: {name} could not be fetched from {' or '.join(urls)} "
        f"({first_line(failure) if failure else 'no address'}): copy the file to {target} yourself."
    ) from failure

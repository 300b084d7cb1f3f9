"""Making the prepared copy of a data set from its published files."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError, did_you_mean, first_line, printable
from ima_dist.config.presets import make_config
from ima_dist.data import prepared
from ima_dist.data.cifar10 import CIFAR10
from ima_dist.data.covid_ct import COVID_CT
from ima_dist.data.idx import FASHION_MNIST, GZIP, MNIST
from ima_dist.data.medmnist import PATHMNIST
from ima_dist.data.published import Published
from ima_dist.data.svhn import SVHN

PUBLISHED = {p.name: p for p in (FASHION_MNIST, MNIST, SVHN, CIFAR10, COVID_CT, PATHMNIST)}
DOWNLOAD = "download"


@dataclass(frozen=True)
class Preparation:
    """Result of ``prepare``.

    directory, manifest: of the copy. already: it existed before. unknown: names of files that are not the published
    ones.
    """

    directory: Path
    manifest: dict[str, Any]
    already: bool
    unknown: tuple[str, ...]


def find(name: str, directory: str | None, download: bool) -> Path:
    """Where a run with ``--data.dir directory`` finds the data set, or its prepared copy; fetches it if told to.

    Raises ConfigError if it is not there, or cannot be fetched.
    """
    published = by_name(name)
    config = make_config(name).data.model_copy(update={"dir": directory, "download": download})
    return prepared.locate(name, config) or published.find(config)[0].parent


def prepare(name: str, source: str, to: str | None = None) -> Preparation:
    """Read the published files in ``source`` and write their prepared copy, unless it exists already.

    source: a directory in a layout that ``--data.dir`` takes, or "download" to search the default directories and
    fetch missing files. to: directory for the copy (default:
    ~/.cache/ima_dist/prepared/NAME); a damaged copy in it is replaced.
    Raises ConfigError if ``name`` is unknown or has no files, if files are missing, damaged or cannot be fetched,
    or if the directory holds something else, a copy of other files included, or cannot be written.
    """
    published = by_name(name)
    place = {"dir": None, "download": True} if source == DOWNLOAD else {"dir": source, "download": False}
    config = make_config(name).data.model_copy(update=place)
    try:
        paths = published.find(config)
        sources = _sources(published, paths)
        directory = prepared.default_directory(name) if to is None else Path(to).expanduser().absolute()
        manifest, already = _whole(directory, name, sources), True
        if manifest is None:
            parts = published.read_files(paths)
            with prepared.writing(directory):
                # Another process may have been faster.
                manifest = _whole(directory, name, sources)
                if manifest is None:
                    manifest, already = prepared.write(directory, name, parts, sources), False
    except ConfigError as e:
        # The loaders' messages name the options of ``ima_dist.train``.
        text = str(e).replace("--data.download", f"--source {DOWNLOAD}").replace("--data.dir", "--source")
        raise ConfigError(text) from e.__cause__
    known = published.checksums
    unknown = tuple(f["name"] for f in sources["files"] if known and not f["published"])
    return Preparation(directory, manifest, already, unknown)


def verify(name_or_directory: str) -> tuple[Path, dict[str, Any]]:
    """Directory and manifest of a prepared copy, every byte checked. Raises ConfigError naming a damaged file."""
    if name_or_directory in PUBLISHED:
        directory = prepared.default_directory(name_or_directory)
        return directory, prepared.verify(directory, name_or_directory)
    directory = Path(name_or_directory).expanduser()
    if not directory.is_dir():
        raise ConfigError(
            f"{name_or_directory} is neither a directory nor one of {', '.join(PUBLISHED)}"
            f"{did_you_mean(name_or_directory, PUBLISHED)}: name one of them."
        )
    return directory, prepared.verify(directory)


def by_name(name: str) -> Published:
    """Raises ConfigError if there is no such data set, or if it has no files."""
    if name == "moons":
        raise ConfigError("moons needs no preparation: its points are generated at every start.")
    if name not in PUBLISHED:
        raise ConfigError(
            f"Unknown data set {name!r}{did_you_mean(name, PUBLISHED)}: name one of {', '.join(PUBLISHED)}."
        )
    return PUBLISHED[name]


def _whole(directory: Path, name: str, sources: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the prepared copy of exactly these files; None if there is none or it is damaged."""
    try:
        manifest = prepared.verify(directory, name)
    except ConfigError:
        return None
    if manifest["name"] != name or manifest["sources"]["digest"] != sources["digest"]:
        what = "other files" if manifest["name"] == name else manifest["name"]
        raise ConfigError(
            f"{directory} holds a prepared copy of {what}: delete it, or name another directory with --to."
        )
    return manifest


def _sources(published: Published, paths: list[Path]) -> dict[str, Any]:
    """The directory, and each file's name, size, MD5 and "published": true, false, or null if unknown.

    Raises ConfigError for a file with the size of the published one but different contents.
    """
    known, files = published.checksums, []
    root = Path(os.path.commonpath([path.parent for path in paths]))
    contents = [
        (name, file) for name, path in zip(published.names, paths, strict=True) for file in published.contents(path)
    ]
    for name, path in contents:
        try:
            content = path.read_bytes()
        except OSError as e:
            raise published.damaged(ConfigError(f"{path} cannot be read ({first_line(e)})")) from e
        zipped = content.startswith(GZIP)
        size, md5 = known.get(name + (published.suffix if zipped else ""), (None, None))
        found = _md5(content)
        same = found == md5 or (zipped and _is_published_inside(content, known.get(name)))
        if not same and len(content) == size:
            published.read_files(paths)  # says more if it is another set's
            wrong = f"{path} is damaged (it has the size of the published file, but not its MD5 checksum {md5})"
            raise published.damaged(ConfigError(wrong))
        name = printable(path.relative_to(root).as_posix())
        files.append({"name": name, "bytes": len(content), "md5": found, "published": same if known else None})
    return {"directory": printable(str(root.absolute())), "files": files, "digest": prepared.digest(files)}


def _is_published_inside(content: bytes, plain: tuple[int, str] | None) -> bool:
    """True for a published file that is compressed differently; ``plain``: its size and MD5 checksum."""
    try:
        return plain is not None and plain[1] == _md5(gzip.decompress(content))
    except (OSError, EOFError, zlib.error):  # the loader reports what is wrong with it
        return False


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()

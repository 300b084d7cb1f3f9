"""Finding run directories: the one place that knows which folders hold runs and which never do."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.curves import attack_rows
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import sentence
from ima_dist.rundir.run import Run

DATASET, TENSORBOARD = "dataset", "tensorboard"
#: The file in a data set of runs by which it is known to be ours.
MARKER = ".ima_dist"
# What a data set without that file, from an earlier version, holds: folders with files that have these columns.
_EARLIER = {
    "runs": {"run", "status", "fingerprint", "stamp"},
    "curves": {"run", "attack", "noise", "accuracy"},
    "history": {"run", "epoch", "train_loss"},
    "margins": {"run", "index", "margin", "crossed"},
}


def find_runs(root: Path) -> tuple[list[RunDir], list[str]]:
    """The run directories at ``root`` and below, in order, and a sentence for whatever cannot be searched.

    A run is not searched further. Skipped are hidden directories, our own data set and TensorBoard's files wherever
    they lie, and symbolic links, which may lead out of ``root`` or in a circle.
    """
    root = root.resolve()
    if not root.is_dir():
        return [], [f"{root} is not a directory."]
    found: list[RunDir] = []
    problems: list[str] = []

    unread: list[OSError] = []
    for here, directories, files in os.walk(root, onerror=unread.append):
        path = Path(here)
        if "config.yaml" in files or "summary.json" in files:
            found.append(RunDir(path))
            directories.clear()
            continue
        links = {name for name in directories if os.path.islink(path / name)}
        problems += [f"{path / name} is a symbolic link, which is not followed." for name in sorted(links)]
        stray = sorted(name for name in files if name.endswith(".parquet"))
        problems += [f"{path / name} lies outside of any run, so it is not read." for name in stray]
        directories[:] = sorted(n for n in directories if n not in links and not _is_ours(path, n))
    return found, [*map(sentence, unread), *problems]


def finished_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The finished and evaluated runs at ``paths`` and below, and a sentence for each that is not or is damaged.

    Each is named by its directory, below the one that contains all of them.
    """
    problems: list[str] = []
    places: dict[Path, RunDir] = {}
    for path in paths:
        found, complaints = find_runs(path)
        problems += complaints or ([] if found else [f"{path} holds no run."])
        places |= {run.path: run for run in found}
    runs = []
    for path in places:
        try:
            runs.append(_finished(path))
        except ConfigError as error:
            problems.append(str(error))
    common = os.path.commonpath([run.dir.path.parent for run in runs]) if runs else ""
    for run in runs:
        run.name = os.path.relpath(run.dir.path, common)
    return runs, problems


def is_dataset(path: Path) -> bool:
    """Whether a directory is our data set of runs, and not, say, a user's images that happen to have its name."""
    return path.name == DATASET and ((path / MARKER).is_file() or _of_earlier_version(path))


def _of_earlier_version(path: Path) -> bool:
    """Whether a directory without the marker holds our tables, and nothing else."""
    try:
        folders = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        if not folders or not all(entry.name in _EARLIER and entry.is_dir() for entry in folders):
            return False
        # A hidden file is one that was being written.
        files = {f.name: [e for e in f.iterdir() if not e.name.startswith(".")] for f in folders}
        if not all(file.suffix == ".parquet" for found in files.values() for file in found):
            return False
        # Any one file tells whose they are; another may be damaged.
        known = [_has_columns(file, _EARLIER[kind]) for kind, found in files.items() for file in found[:1]]
        return any(known) if known else len(folders) == len(_EARLIER)
    except OSError:
        return False


def _has_columns(file: Path, columns: set[str]) -> bool:
    with contextlib.suppress(pa.ArrowException, OSError):
        names = pq.read_schema(file).names
        return names[:1] == ["run"] and columns <= set(names)
    return False


def _is_ours(parent: Path, name: str) -> bool:
    if name == TENSORBOARD:
        return not (parent / name / "config.yaml").exists()
    return name.startswith(".") or is_dataset(parent / name)


def _finished(path: Path) -> Run:
    run = Run.open(path)
    damaged = run.damaged("summary", "points")
    if damaged:
        raise ConfigError(damaged[0])
    if run.status != "finished":
        raise ConfigError(f"{path} is not finished (status: {run.status}).")
    if not attack_rows(run.points):
        raise ConfigError(f"{path} has no accuracy under attack: run python -m ima_dist.evaluate on it.")
    return run

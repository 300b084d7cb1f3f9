"""A run directory: the paths of its files, and how they are written and read.

Every file is written under another name and then renamed, so a reader sees the old file or the new one, never half.
"""

import contextlib
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import pyarrow as pa
import yaml

from ima_dist import __version__
from ima_dist.config.errors import ConfigError, cut
from ima_dist.config.plain_yaml import dump_plain, load_plain
from ima_dist.config.schema import Config
from ima_dist.config.values import from_dict, to_dict
from ima_dist.rundir import files, kept_margins, lease
from ima_dist.rundir.curves import Point
from ima_dist.rundir.files import read_json, read_parquet
from ima_dist.rundir.remedies import remedy

_T = TypeVar("_T")
# So that no thread looks at the lease between a new mark in the file and the same in this process.
_RENEWING = threading.Lock()
_PACKAGES = ("torch", "torchvision", "ray", "numpy", "advertorch")
_FLOAT = pa.float64()
# Types that inference would get wrong, because the first epoch may hold None or a whole number.
_HISTORY_TYPES = {
    "epoch": pa.int64(),
    **dict.fromkeys(("train_loss", "train_accuracy", "val_accuracy", "val_robust_accuracy", "margin_mean"), _FLOAT),
    "margin_quantiles": pa.list_(_FLOAT),
    "margin_histogram": pa.list_(pa.int64()),
    "share_at_max": _FLOAT,
    "evaluations": pa.int64(),
    **dict.fromkeys(("train_seconds", "margin_seconds", "samples_per_second"), _FLOAT),
}
# Bins of margin_histogram up to ε_max; mma, whose margins go further, has more of the same width.
HISTOGRAM_BINS = 50
_LARGEST = 1 << 20  # bytes of a config.yaml; ours have about a thousand
_EQUILIBRIUM = pa.schema(
    {
        **dict.fromkeys(("epoch", "class_i", "class_j", "count_i", "count_j"), pa.int64()),
        **dict.fromkeys(("difference_i", "difference_j", "abs_difference", "loss_i", "loss_j"), _FLOAT),
        **dict.fromkeys(("points_i", "points_j"), pa.int64()),
        **dict.fromkeys(("mixing", "mixing_sd"), _FLOAT),
    }
)


class RunDir:
    """Paths and files of one run (``runs/<name>/…``). The path is made absolute: workers change directory."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.mark: str | None = None  # of our lease, while we hold the run
        self._held: lease.Held | None = None
        #: A sentence once something that is only shown could not be written; see ``for_display``.
        self.dropped: list[str] = []
        self.config_path = self.path / "config.yaml"
        self.data_path = self.path / "data.json"
        self.lock_path = self.path / "lock"
        self.notes_path = self.path / "notes.json"
        self.log_path = self.path / "log.txt"
        self.newest_path = self.path / "checkpoint.json"
        self.summary_path = self.path / "summary.json"
        self.progress_path = self.path / "progress.json"
        self.history_path = self.path / "history.parquet"
        self.equilibrium_path = self.path / "equilibrium.parquet"
        self.outcomes_path = self.path / "outcomes.parquet"
        self.probabilities_path = self.path / "probabilities.parquet"
        self.certificates_path = self.path / "certificates.parquet"
        self.samples_path = self.path / "samples.parquet"
        self.scores_path = self.path / "scores.parquet"
        self.audit_path = self.path / "audit.parquet"
        self.audits_dir = self.path / "audits"
        self.code_dir = self.path / "code"
        self.stacks_dir = self.path / "stacks"
        self.margins_dir = self.path / "margins"
        self.checkpoints_dir = self.path / "checkpoints"
        self.figures_dir = self.path / "figures"
        self.examples_dir = self.path / "examples"
        self.profile_dir = self.path / "profile"
        self.boundary_path = self.examples_dir / "boundary.npz"
        self.noisy_path = self.examples_dir / "noisy.npz"
        self.extremes_path = self.examples_dir / "extremes.npz"
        self.answers_path = self.examples_dir / "answers.npz"
        self.flips_path = self.examples_dir / "flips.npz"
        self.start_dir, self.given_dir = self.path / "start", self.path / "given"  # weights, arrays from elsewhere

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, config: Config, out: Path | str) -> Self:
        """Make the directory ``out`` and its config.yaml, with versions and fingerprint.

        Raises ConfigError if ``out`` is not free, or cannot be written.
        """
        run = cls.free(out)
        new, found = not run.path.exists(), versions()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run.lock_path.touch()
            run._write_config(config, found)
        except OSError as error:
            with contextlib.suppress(OSError):
                if new:
                    run.lock_path.unlink(missing_ok=True)
                    run.path.rmdir()
            why = error.strerror or error
            raise ConfigError(f"{run.path} cannot be written ({why}): give another --out.") from None
        return run

    @classmethod
    def free(cls, out: Path | str) -> Self:
        """The run that could be created in ``out``. Writes nothing.

        Raises ConfigError if ``out`` holds a run or other files, is a file, or cannot be read or made.
        """
        run = cls(out)
        try:
            if run.config_path.exists():
                resume = f"continue it with --resume {run.path}"
                raise ConfigError(f"{run.path} already holds a run: {resume}, or give another --out.")
            if run.path.exists() and not run.path.is_dir():
                raise ConfigError(f"{run.path} is a file: give another --out.")
            if run.path.exists() and any(run.path.iterdir()):
                raise ConfigError(f"{run.path} holds files but is not a run: give another --out.")
            if reason := files.why_unwritable(run.config_path):
                raise ConfigError(f"{run.path} cannot be written ({reason}): give another --out.")
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"{run.path} cannot be written ({reason}): give another --out.") from None
        return run

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The run in an existing directory. Raises ConfigError if it has no config.yaml."""
        run = cls(path)
        if not run.config_path.is_file():
            raise ConfigError(f"{run.path} is not a run directory: it has no config.yaml, so check the path.")
        return run

    def record(self, config: Config) -> None:
        """Rewrite config.yaml for a run that continues with other settings, for example of the evaluation.

        The versions stay those that the run began with. Raises OSError.
        """
        if config != self.config():
            tree = load_plain(self.config_path.read_text(encoding="utf-8"))
            self._write_config(config, tree.get("versions", {}))

    def _write_config(self, config: Config, versions: dict[str, Any]) -> None:
        tree = {**to_dict(config), "versions": versions, "fingerprint": config.fingerprint()}
        with self.replacing(self.config_path) as file:
            file.write(dump_plain(tree).encode())

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run: only one process may write into it. Raises ConfigError like ``lease.held``."""
        with lease.held(self.lock_path) as self._held:
            self.mark = self._held.mark
            yield

    def shake_off(self) -> None:
        """Take the run away from workers of ours that may still run, out of reach. Raises LeaseLost if it is lost."""
        self.check_lease()
        if self._held is not None:
            with _RENEWING:
                self._held.renew()
                self.mark = self._held.mark

    def check_lease(self) -> None:
        """Raise LeaseLost if another process has become the run's writer; cheap enough to call every second."""
        if self.mark is not None:
            with _RENEWING:
                lease.check(self.lock_path, self.mark)

    # Whoever writes looks at the lease twice: before the work, and when the file is ready to be moved to its place. A
    # process that was stopped in between must not overwrite what its successor has written.

    def replacing(self, path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
        """As ``files.replacing``, for a file of this run. Raises LeaseLost, with nothing changed, and OSError."""
        return files.replacing(path, self.check_lease)

    def write_json(self, path: Path, obj: dict[str, Any]) -> None:
        """As ``files.write_json``, for a file of this run. Raises LeaseLost, OSError."""
        files.write_json(path, obj, self.check_lease)

    def write_progress(self, state: dict[str, Any]) -> None:
        """Rewrite progress.json, which is only shown: see ``for_display``. Raises LeaseLost."""

        def write() -> None:
            try:
                # Once a second, and of use only while the run goes on.
                files.write_json(self.progress_path, state, self.check_lease, durable=False)
            except OSError:
                self.remove(self.progress_path)  # what it says is no longer so
                raise

        self.for_display(write)

    def remove(self, path: Path) -> None:
        """Remove a file of this run, if it is there. Raises LeaseLost, and OSError."""
        self.check_lease()  # or it may be the successor's
        path.unlink(missing_ok=True)

    def write_parquet(self, path: Path, table: pa.Table) -> None:
        """As ``files.write_parquet``, for a file of this run. Raises LeaseLost, OSError."""
        files.write_parquet(path, table, self.check_lease)

    def for_display(self, write: Callable[[], object]) -> None:
        """Call ``write``, which writes what is only shown: if the disk refuses it, the run goes on without.

        ``dropped`` then has one sentence, however often that happens. Raises LeaseLost.
        """
        try:
            write()
        except OSError as error:
            if not self.dropped:
                reason = error.strerror or error
                self.dropped.append(
                    f"{error.filename or self.path} cannot be written ({reason}): the run goes on without it, until a "
                    "checkpoint or a result cannot be written either."
                )

    def config(self) -> Config:
        """The configuration in config.yaml. Raises ConfigError if it is missing, damaged or invalid."""
        try:
            large = self.config_path.stat().st_size > _LARGEST
            tree = {} if large else load_plain(self.config_path.read_text(encoding="utf-8"))
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{self.config_path} cannot be read ({why}): check the path.") from None
        except (yaml.YAMLError, ValueError) as error:
            reason = cut(" ".join(str(error).split()))
            raise ConfigError(f"{self.config_path} is not valid YAML ({reason}): restore it from a copy.") from None
        if large:
            raise ConfigError(f"{self.config_path} is far larger than a configuration: it is not one of ours.")
        if not isinstance(tree, dict):
            raise ConfigError(f"{self.config_path} is damaged (not a mapping): restore it from a copy.")
        if self.given_dir.is_dir() and isinstance(tree.get("data"), dict):
            tree["data"]["dir"] = str(self.given_dir)  # wherever the run lies by now
        try:
            return from_dict({name: value for name, value in tree.items() if name not in ("versions", "fingerprint")})
        except ConfigError as error:
            raise ConfigError(f"In {self.config_path}: {cut(str(error))}") from None

    def summary(self) -> dict[str, Any]:
        """summary.json; {} before it is written. Raises ConfigError if damaged."""
        return read_json(self.summary_path) or {}

    def points(self) -> list[Point]:
        """The curves of summary.json; [] before it is written. Raises ConfigError if damaged."""
        return self.points_of(self.summary())

    def points_of(self, summary: dict[str, Any]) -> list[Point]:
        """The curves of ``summary``, which was read from this run. Raises ConfigError if damaged."""
        try:
            return [Point.from_json(entry) for entry in summary.get("curves") or []]
        except (TypeError, ValueError):
            raise ConfigError(f"{self.summary_path} is damaged (curves): {remedy(self.summary_path)}.") from None

    @property
    def status(self) -> str:
        """``status`` of summary.json, or "unfinished" if there is none yet."""
        return str(self.summary().get("status") or "unfinished")

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Rewrite history.parquet with all rows so far, one per epoch. Raises OSError.

        Values are numbers, text, lists or None; a key that a row lacks reads back as None.
        """
        names = list(dict.fromkeys(name for row in rows for name in row)) or list(_HISTORY_TYPES)
        columns = {name: pa.array([row.get(name) for row in rows], type=_HISTORY_TYPES.get(name)) for name in names}
        self.write_parquet(self.history_path, pa.table(columns))

    def read_history(self) -> list[dict[str, Any]]:
        """Rows of history.parquet, oldest first; [] if there is none. Raises ConfigError if damaged."""
        return _rows(self.history_path)

    def write_equilibrium(self, rows: list[dict[str, Any]]) -> None:
        """Rewrite equilibrium.parquet with all rows so far, one per epoch and pair of classes. Raises OSError.

        The columns are those of ``training.equilibrium.Equilibrium.rows``.
        """
        self.write_parquet(self.equilibrium_path, pa.Table.from_pylist(rows, schema=_EQUILIBRIUM))

    def read_equilibrium(self) -> list[dict[str, Any]]:
        """Rows of equilibrium.parquet, oldest first; [] if there is none. Raises ConfigError if damaged."""
        return _rows(self.equilibrium_path)

    def newest_margins(self, complain: Callable[[str], object] = warnings.warn) -> tuple[int, pa.Table] | None:
        """The newest epoch with a complete snapshot of the margins, and its table; None if there is none.

        The table has the columns index, margin, label, correct and crossed, and one row per sample, by index. If a
        shard is damaged or missing, ``complain`` (by default a warning) names it and the epoch before is used.
        """
        return self.over_margins(lambda epoch, samples, pieces: (epoch, pa.concat_tables(pieces)), complain)

    def over_margins(
        self, take: Callable[[int, int, Iterator[pa.Table]], _T], complain: Callable[[str], object] = warnings.warn
    ) -> _T | None:
        """``take(epoch, samples, pieces)`` for the margins of ``newest_margins``, which need not be in memory at once.

        samples: their number. pieces: their tables of at most ``snapshots.ROWS`` rows each. If a piece cannot be read,
        ``take`` is called again with the margins of the epoch before.
        """
        return kept_margins.over(self.margins_dir, take, complain)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_parquet(path).to_pylist()
    except FileNotFoundError:
        return []


def default_name(config: Config, now: datetime) -> str:
    """Name of a run directory, such as ``moons-ima-linf-seed0-20261122-220700``."""
    return f"{config.name or config.preset}-{config.method}-{config.norm}-seed{config.seed}-{now:%Y%m%d-%H%M%S}"


def versions() -> dict[str, str | None]:
    """The installed version of every package that affects results; None for one that is not installed."""
    out = {"ima_dist": __version__, "python": platform.python_version(), **dict.fromkeys(_PACKAGES)}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out

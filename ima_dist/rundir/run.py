"""One run as a value: the parts of its directory, each read once, when it is first used."""

import contextlib
import html
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.config.values import option_values
from ima_dist.rundir.curves import Point, attack_rows, format_noise, levels_of, shown_protocols
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import MOST_ROWS, inside, read_arrays, read_json, read_parquet, read_picture, sentence
from ima_dist.rundir.liveness import DIED, RUNNING, death
from ima_dist.rundir.remedies import remedy

_T = TypeVar("_T")
# The arrays of boundary.npz, as ``figures.png.decision_boundary`` takes them.
BOUNDARY = ("grid_x", "grid_y", "probability", "points", "labels")
NOISY = ("index", "label", "clean", "clean_prediction", "noise", "noisy", "prediction", "class_names")
FLIPS = ("index", "label", "noise", "clean", "noisy", "clean_prediction", "prediction", "class_names", "attack")
EXTREMES = ("index", "label", "margin", "largest", "sample", "class_names")
#: The largest training set whose margins are in memory at once to be shown: about 100 MB.
MOST_MARGINS = 1 << 22
Arrays = dict[str, np.ndarray]


def _if_few(epoch: int, samples: int, pieces: Iterator[pa.Table]) -> tuple[int, pa.Table] | None:
    return (epoch, pa.concat_tables(pieces)) if samples <= MOST_MARGINS else None


def _table(path: Path) -> pa.Table:
    return read_parquet(path, MOST_ROWS)


def _boundary(path: Path) -> Arrays:
    """The arrays that ``evaluation.artefacts.boundary_grid`` makes."""
    found = read_arrays(path, BOUNDARY)
    grid, points = (found["grid_y"].size, found["grid_x"].size), (found["labels"].size, 2)
    return _fitting(path, found, (found["probability"].shape, found["points"].shape) == (grid, points))


def _noisy(path: Path) -> Arrays:
    """The arrays that ``evaluation.artefacts.noisy_images`` makes."""
    found = read_arrays(path, NOISY)
    image, grid = found["clean"].shape[1:], (found["label"].size, found["noise"].size)
    fits = len(image) == 3 and found["noisy"].shape == (*grid, *image) and found["prediction"].shape == grid
    return _fitting(path, found, fits and found["clean_prediction"].size == found["index"].size == grid[0])


def _flips(path: Path) -> Arrays:
    """The arrays that ``evaluation.lost_first`` makes."""
    found = read_arrays(path, FLIPS)
    count = (found["label"].size,)
    fits = all(found[name].shape == count for name in ("index", "noise", "clean_prediction", "prediction"))
    same = found["clean"].shape == found["noisy"].shape and found["clean"].ndim == 4
    return _fitting(path, found, fits and same and found["clean"].shape[:1] == count)


def _extremes(path: Path) -> Arrays:
    """The arrays that ``evaluation.artefacts.extremes`` makes."""
    found = read_arrays(path, EXTREMES)
    count = found["label"].size
    fits = all(found[name].shape == (count,) for name in ("index", "margin", "largest"))
    return _fitting(path, found, fits and found["sample"].ndim > 1 and found["sample"].shape[0] == count)


def _fitting(path: Path, found: Arrays, fits: bool) -> Arrays:
    if not fits:
        raise ConfigError(f"{path} is damaged (shapes do not match): {remedy(path)}.")
    return found


def _file(part: str, read: Callable[[Path], _T]) -> cached_property[_T | None]:
    """The part of a ``Run`` that is one file."""
    return cached_property(lambda run: run._part(part, getattr(run.dir, f"{part}_path"), read, None))


class Run:
    """One run. A part that is missing is None or empty; so is a damaged part, and ``problems`` says what is wrong.

    name: to tell the run from others. dir: its directory. problems: part that was used -> a sentence for the user.
    """

    def __init__(self, dir: RunDir, name: str | None = None) -> None:
        self.dir = dir
        self.name = name or dir.path.name
        self.problems: dict[str, str] = {}

    @classmethod
    def open(cls, path: Path | str, name: str | None = None) -> Self:
        """The run in a directory. Raises ConfigError unless its configuration can be read."""
        run = cls(RunDir.open(path), name)
        _ = run.config
        return run

    def __repr__(self) -> str:
        path, here = self.dir.path, Path.cwd()
        path = path.relative_to(here) if path.is_relative_to(here) else path
        return f"{type(self).__name__}({self.name!r}, {str(path)!r})"

    def _repr_html_(self) -> str:
        """How a notebook shows the run: its accuracies under attack."""
        rows = attack_rows(self.points)
        levels = levels_of(rows.values())
        cells = [["noise", *map(format_noise, levels)]]
        for attack, row in rows.items():
            cells.append([attack, *(f"{row[x].share:.4f}" if x in row else "" for x in levels)])
        lines = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in cells)
        caption = html.escape(f"{self.name} ({self.status}): accuracy on the test set")
        return f"<table><caption>{caption}</caption>{lines if rows else ''}</table>"

    @cached_property
    def config(self) -> Config:
        """The configuration. Raises ConfigError if it cannot be read."""
        inside(self.dir.path, self.dir.config_path)
        return self.dir.config()

    @cached_property
    def options(self) -> dict[str, Any]:
        """Every option of the configuration by its dotted name."""
        return option_values(self.config)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; {} before it is written."""
        return self._part("summary", self.dir.summary_path, lambda path: self.dir.summary(), {})

    @cached_property
    def data_digest(self) -> str | None:
        """What identifies the data that the run was trained on (``DataSet.digest``); None if that is not known."""
        found = self.summary.get("data_digest")
        # Runs of earlier versions have it in their checkpoints only.
        for path in () if found else sorted(self.dir.checkpoints_dir.glob("epoch=*/state.json"), reverse=True):
            with contextlib.suppress(ConfigError, OSError):
                found = (read_json(inside(self.dir.path, path)) or {}).get("data")
            if found:
                break
        return None if found is None else str(found)

    @property
    def status(self) -> str:
        """``status`` of summary.json, "unfinished" as long as there is none, or "damaged"; "died" if it says "running"
        and the process is gone (``liveness.death``)."""
        status = self.summary.get("status")
        return "damaged" if "summary" in self.problems else self._now(str(status or "unfinished"))

    def _now(self, status: str) -> str:
        if status not in (RUNNING, DIED):  # one that seemed to have died may have written again
            return status
        return RUNNING if self.death is None else DIED

    @property
    def death(self) -> str | None:
        """As ``liveness.death``; of use where the status is "died"."""
        return death(self.dir)

    @property
    def message(self) -> str | None:
        """Why the run has failed, was interrupted, or is said to have died."""
        found = self.summary.get("message")
        return self.death if self.status == DIED else None if found is None else str(found)

    @cached_property
    def points(self) -> list[Point]:
        """The curves of summary.json."""
        return self._part("points", self.dir.summary_path, lambda path: self.dir.points_of(self.summary), [])

    @cached_property
    def history_table(self) -> pa.Table:
        """history.parquet: a row for each epoch, oldest first."""

        def read(path: Path) -> pa.Table:
            table = _table(path)
            if table.num_rows and "epoch" not in table.column_names:
                raise ConfigError(f"{path} is damaged (no column epoch): {remedy(path)}.")
            return table

        return self._part("history", self.dir.history_path, read, pa.table({}))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The rows of ``history_table``; accuracies on clean data that are not recorded are None."""
        return [{"train_accuracy": None, "val_accuracy": None, **row} for row in self.history_table.to_pylist()]

    @property
    def training_history(self) -> list[dict[str, Any]]:
        """``history``; [] for a network that was trained elsewhere, whose only row is not of a training."""
        return [] if self.options["method"] == EXTERNAL else self.history

    @property
    def margin_history(self) -> list[dict[str, Any]]:
        """The rows of ``history`` with margins."""
        return [row for row in self.history if row.get("margin_histogram") and row.get("margin_mean") is not None]

    @cached_property
    def equilibrium(self) -> list[dict[str, Any]]:
        """The rows of equilibrium.parquet, oldest first."""
        return self._part("equilibrium", self.dir.equilibrium_path, lambda path: self.dir.read_equilibrium(), [])

    @cached_property
    def margins(self) -> tuple[int, pa.Table] | None:
        """The newest epoch with a complete snapshot of the margins, and its table, as ``RunDir.newest_margins``.

        None also if it has more than ``MOST_MARGINS`` rows: use ``over_margins``, or the histogram in
        ``margin_history``. Damaged snapshots are skipped, and named in ``problems``.
        """
        return self.over_margins(_if_few)

    @cached_property
    def margin_count(self) -> int:
        """The number of rows of the newest snapshot, also if they are too many for ``margins``; 0 without one."""
        return self.over_margins(lambda epoch, samples, pieces: samples) or 0

    def over_margins(self, take: Callable[[int, int, Iterator[pa.Table]], _T]) -> _T | None:
        """As ``RunDir.over_margins``. Damaged snapshots are skipped, and named in ``problems``."""
        complaints: list[str] = []
        try:
            for file in self.dir.margins_dir.glob("epoch=*/*"):
                inside(self.dir.path, file)
        except ConfigError as error:
            self.problems["margins"] = str(error)
            return None
        found = self.dir.over_margins(take, complaints.append)
        if complaints:
            self.problems["margins"] = " ".join(complaints)
        return found

    @cached_property
    def outcomes(self) -> pa.Table | None:
        """outcomes.parquet: a row for each test sample, attack, loss and noise level.

        Of several protocols of an attack only the one that tables show: see ``curves.shown_protocols``.
        """

        def read(path: Path) -> pa.Table:
            table = _table(path)
            if "protocol" not in table.column_names:  # of an earlier version, which kept one
                return table
            shown = {(*key, protocol) for key, protocol in shown_protocols(self.points).items()}
            keys = zip(*(table[name].to_pylist() for name in ("attack", "epoch", "protocol")), strict=True)
            return table.filter(pa.array([key in shown for key in keys], pa.bool_()))

        return self._part("outcomes", self.dir.outcomes_path, read, None)

    # Of a two-class task: the probability of the second class for each sample.
    scores = _file("scores", _table)
    # Stored margins beside distances found by another attack.
    audit = _file("audit", _table)
    # Certified radii of the smoothed classifier.
    certificates = _file("certificates", _table)
    # The network's answers in the plane.
    boundary = _file("boundary", _boundary)
    # A few test images under growing noise.
    noisy = _file("noisy", _noisy)
    # The test images that are lost first, with their attacked images.
    flips = _file("flips", _flips)
    # Training samples with the smallest and the largest margins.
    extremes = _file("extremes", _extremes)

    @cached_property
    def equilibrium_picture(self) -> bytes | None:
        """figures/equilibrium.png."""
        return self._part("equilibrium_picture", self.dir.figures_dir / "equilibrium.png", read_picture, None)

    def progress(self) -> dict[str, Any]:
        """progress.json as it is now, with "age", the seconds since it was written; {} if there is none."""
        path = self.dir.progress_path
        try:
            state = read_json(inside(self.dir.path, path)) or {}
            return {**state, "age": max(0.0, time.time() - path.stat().st_mtime)} if state else {}
        except (ConfigError, OSError):
            return {}

    def damaged(self, *parts: str) -> list[str]:
        """A sentence for each of these parts that is damaged; parts not used yet are read."""
        for part in parts:
            getattr(self, part)  # reads it
        return [self.problems[part] for part in parts if part in self.problems]

    def _part(self, name: str, path: Path, read: Callable[[Path], _T], otherwise: _T) -> _T:
        """The file as ``read`` returns it, or ``otherwise`` if it is missing, damaged or outside the run."""
        try:
            return read(inside(self.dir.path, path))
        except FileNotFoundError:
            return otherwise
        except (ConfigError, OSError) as error:
            self.problems[name] = sentence(error)
            return otherwise

"""At which noise level each test sample is lost, from the outcomes of one attack."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.curves import Row, noise_key
from ima_dist.rundir.files import MOST_ROWS, inside
from ima_dist.rundir.run import Run


@dataclass(frozen=True)
class Flips:
    """The test samples (N,) that an attack was run on, in the order of their indices.

    levels: (L,) the noise levels, ascending. prediction: (L, N). lost: (N,) the smallest level at which a sample is
    classified wrongly, infinite where there is none.
    """

    index: np.ndarray
    label: np.ndarray
    levels: np.ndarray
    prediction: np.ndarray

    @property
    def lost(self) -> np.ndarray:
        wrong = self.prediction != self.label
        return np.where(wrong.any(0), self.levels[wrong.argmax(0)], np.inf)

    @property
    def becomes(self) -> np.ndarray:
        """(N,) the class that a sample is taken for where it is lost; its own where it is not."""
        wrong = self.prediction != self.label
        return np.where(wrong.any(0), np.take_along_axis(self.prediction, wrong.argmax(0)[None], 0)[0], self.label)

    def confusion(self, level: float, classes: int) -> np.ndarray:
        """(K, K) samples by true and predicted class at one of the levels; predictions that are none are left out."""
        place = int(np.flatnonzero(self.levels == level)[0])
        there = (self.prediction[place] >= 0) & (self.prediction[place] < classes)
        cells = self.label[there] * classes + self.prediction[place][there]
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def read_flips(run: Run, row: Row) -> Flips | None:
    """The samples behind a row of accuracies; None if its outcomes are missing.

    Raises ConfigError if outcomes.parquet is damaged, is not that of the row, or is too large.
    """
    path, point = run.dir.outcomes_path, next(iter(row.values()))
    try:
        data = pa.dataset.dataset(str(inside(run.dir.path, path)), format="parquet")
        wanted = (
            (pc.field("attack") == point.attack) & (pc.field("epoch") == point.epoch) & (pc.field("loss") == "both")
        )
        if "protocol" in data.schema.names:  # earlier versions kept one
            wanted = wanted & (pc.field("protocol") == point.protocol)
        if data.count_rows(filter=wanted) > MOST_ROWS:
            raise ConfigError(f"{path} has too many rows to be shown.")
        table = data.to_table(columns=["index", "noise", "label", "prediction"], filter=wanted)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path} cannot be read ({reason}): restore it from a copy.") from None
    if not table.num_rows:
        return None
    index, noise, label, prediction = (column.to_numpy() for column in table.itercolumns())
    levels = np.unique(noise)
    order = np.lexsort((index, noise))
    shape = (len(levels), len(index) // len(levels))
    if len(index) % len(levels):
        raise ConfigError(f"{path} is damaged (samples are missing at some noise levels): restore it from a copy.")
    rows, labels = index[order].reshape(shape), label[order].reshape(shape)
    if (rows != rows[0]).any() or (labels != labels[0]).any():
        raise ConfigError(f"{path} is damaged (not the same samples at every noise level): restore it from a copy.")
    keys = np.array([noise_key(level) for level in levels.tolist()])
    return Flips(rows[0].astype(np.int64), labels[0].astype(np.int64), keys, prediction[order].reshape(shape))


def clean_confidence(run: Run) -> dict[int, float]:
    """Index of a test sample -> the probability of its class less that of the likeliest other one, without noise.

    Empty if the run has not kept them.
    """
    path = run.dir.probabilities_path
    try:
        data = pa.dataset.dataset(str(inside(run.dir.path, path)), format="parquet")
        wanted = (pc.field("attack") == "clean") & (pc.field("noise") == 0)
        table = data.to_table(columns=["index", "label", "epoch", "probability"], filter=wanted)
    except (ConfigError, pa.ArrowException, OSError, ValueError, KeyError):
        return {}
    if not table.num_rows or table.num_rows > MOST_ROWS:
        return {}
    table = table.filter(pc.field("epoch") == pc.max(table["epoch"]).as_py())
    if "probability" not in table.column_names or table["probability"].null_count:
        return {}
    rows, label = table["probability"].to_pylist(), table["label"].to_numpy()
    classes = len(rows[0])
    if classes < 2 or any(len(row) != classes for row in rows) or label.max() >= classes or label.min() < 0:
        return {}
    p = np.array(rows, float)
    own = p[np.arange(len(p)), label]
    p[np.arange(len(p)), label] = -np.inf
    return dict(zip(table["index"].to_pylist(), (own - p.max(1)).tolist(), strict=True))

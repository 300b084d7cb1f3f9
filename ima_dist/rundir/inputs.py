"""What a network takes and what it was trained on: the file data.json of a run."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict

from ima_dist.config.checked import Checked, validated
from ima_dist.config.values import to_dict
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json

_Pair = Annotated[tuple[float, float], Strict(False)]


class SplitInputs(Checked):
    """samples: how many. groups: from how many groups they come, None if that is not known. digest: a hash of their
    number, all labels and up to 512 samples (``Split.digest``)."""

    samples: int = Field(ge=0)
    digest: str
    groups: int | None = None


class Inputs(Checked):
    """shape: of one sample. dtype: of the stored samples; uint8 ones are divided by 255 for the network.

    box: as in ``DataSet``. low, high: range of up to 512 training samples as the network sees them. classes: how many.
    class_names: one per class, or None. splits: train, val and test. digest: of all three (``DataSet.digest``).
    split_level: as in ``DataSet``.
    """

    shape: Annotated[tuple[int, ...], Strict(False)]
    dtype: Literal["uint8", "float"]
    box: _Pair | None
    low: float
    high: float
    classes: int = Field(ge=2)
    class_names: Annotated[tuple[str, ...], Strict(False)] | None
    splits: dict[str, SplitInputs]
    digest: str
    split_level: str | None = None

    @property
    def unit(self) -> bool:
        """Whether the network sees pixels from 0 to 1, so that bytes can be divided by 255."""
        return self.box == (0.0, 1.0)


def write_inputs(run: RunDir, inputs: Inputs) -> None:
    """Raises LeaseLost, OSError."""
    run.write_json(run.data_path, to_dict(inputs))


def read_inputs(path: Path) -> Inputs | None:
    """None if there is no such file, as in runs of earlier versions. Raises ConfigError if it is damaged."""
    found = read_json(path)
    return None if found is None else validated(Inputs, found, str(path), lambda name: name)

"""The small arrays that a run leaves in examples/, checked for their shapes. None is unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_arrays

# The arrays of boundary.npz, as ``figures.decision_boundary`` takes them.
BOUNDARY = ("grid_x", "grid_y", "probability", "points", "labels")
NOISY = ("index", "label", "clean", "clean_prediction", "noise", "noisy", "prediction", "class_names")
EXTREMES = ("index", "label", "margin", "largest", "sample", "class_names")


def read_boundary(path: Path) -> dict[str, np.ndarray] | None:
    """As ``evaluation.boundary.boundary_grid`` made them; None if there are none. Raises ConfigError if damaged."""
    found = read_arrays(path, BOUNDARY)
    if found is None:
        return None
    points = len(found["labels"])
    shapes = found["probability"].shape, found["points"].shape
    return _fitting(path, found, shapes == ((len(found["grid_y"]), len(found["grid_x"])), (points, 2)))


def read_noisy(path: Path) -> dict[str, np.ndarray] | None:
    """As ``evaluation.noisy_images`` made them; None if there are none. Raises ConfigError if damaged."""
    found = read_arrays(path, NOISY)
    if found is None:
        return None
    image, grid = found["clean"].shape[1:], (len(found["label"]), len(found["noise"]))
    fits = len(image) == 3 and found["noisy"].shape == (*grid, *image) and found["prediction"].shape == grid
    return _fitting(path, found, fits and len(found["clean_prediction"]) == len(found["index"]) == grid[0])


def read_extremes(path: Path) -> dict[str, np.ndarray] | None:
    """As ``evaluation.extremes.extremes`` made them; None if there are none. Raises ConfigError if damaged."""
    found = read_arrays(path, EXTREMES)
    if found is None:
        return None
    count = len(found["label"])
    fits = all(found[name].shape == (count,) for name in ("index", "margin", "largest"))
    return _fitting(path, found, fits and found["sample"].ndim > 1 and len(found["sample"]) == count)


def _fitting(path: Path, found: dict[str, np.ndarray], fits: bool) -> dict[str, np.ndarray]:
    if not fits:
        raise ConfigError(f"{path} is damaged (shapes that do not fit): delete it or restore it from a copy.")
    return found

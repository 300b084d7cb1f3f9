"""The small arrays that a run leaves in examples/, read without unpickling and checked for their shapes.

Each function raises FileNotFoundError if there is no such file, and ConfigError if it is damaged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_arrays

# The arrays of boundary.npz, as ``figures.png.decision_boundary`` takes them.
BOUNDARY = ("grid_x", "grid_y", "probability", "points", "labels")
NOISY = ("index", "label", "clean", "clean_prediction", "noise", "noisy", "prediction", "class_names")
EXTREMES = ("index", "label", "margin", "largest", "sample", "class_names")
Arrays = dict[str, np.ndarray]


def read_boundary(path: Path) -> Arrays:
    """The arrays that ``evaluation.artefacts.boundary_grid`` makes."""
    found = read_arrays(path, BOUNDARY)
    grid, points = (found["grid_y"].size, found["grid_x"].size), (found["labels"].size, 2)
    return _fitting(path, found, (found["probability"].shape, found["points"].shape) == (grid, points))


def read_noisy(path: Path) -> Arrays:
    """The arrays that ``evaluation.artefacts.noisy_images`` makes."""
    found = read_arrays(path, NOISY)
    image, grid = found["clean"].shape[1:], (found["label"].size, found["noise"].size)
    fits = len(image) == 3 and found["noisy"].shape == (*grid, *image) and found["prediction"].shape == grid
    return _fitting(path, found, fits and found["clean_prediction"].size == found["index"].size == grid[0])


def read_extremes(path: Path) -> Arrays:
    """The arrays that ``evaluation.artefacts.extremes`` makes."""
    found = read_arrays(path, EXTREMES)
    count = found["label"].size
    fits = all(found[name].shape == (count,) for name in ("index", "margin", "largest"))
    return _fitting(path, found, fits and found["sample"].ndim > 1 and found["sample"].shape[0] == count)


def _fitting(path: Path, found: Arrays, fits: bool) -> Arrays:
    if not fits:
        raise ConfigError(f"{path} is damaged (shapes do not match): delete it or restore it from a copy.")
    return found

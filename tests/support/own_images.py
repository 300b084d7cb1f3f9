"""Small folders of one's own images, in every form that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LEVELS = {"cat": 60, "dog": 180}


def write_image(path: Path, level: int = 60, size: tuple[int, int] = (12, 10), **save: Any) -> Path:
    """An image of one grey, but for a brighter top-left pixel; size: width and height."""
    values = np.full((size[1], size[0]), level, np.uint8)
    values[0, 0] += 20
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **save)
    return path


def write_folder(root: Path, count: int = 6, size: tuple[int, int] = (12, 10)) -> Path:
    """``count`` images of each class, no two of which are equal."""
    for name, level in LEVELS.items():
        for i in range(count):
            write_image(root / name / f"{i}.png", level + i, size)
    return root

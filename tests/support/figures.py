"""Figures that nobody looks at, drawn without being rendered, which takes a third of a small run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from ima_dist.figures import png


@contextlib.contextmanager
def unrendered() -> Iterator[None]:
    """Inside the block every figure is made as ever, and a picture of one pixel is stored in its place."""

    def save(fig: Figure, path: Path) -> None:
        with png.replacing(path) as file:
            Image.new("RGB", (1, 1)).save(file, format="png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "_save", save)
        yield

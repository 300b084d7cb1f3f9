"""A small run on images of the tests' own data, and what tests read from exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ima_dist import train
from tests.support.inline import without_ray

SOURCE, FACTORY = "tests.support.small_images:two_classes", "tests.support.small_images:batch_norm_cnn"


def small_run(path: Path, *options: str) -> Path:
    """Two epochs on 10 × 10 images of two classes with names, with batch norm."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        words = [
            "own", "--name", "scans", "--data.source", SOURCE, "--model.factory", FACTORY, "--eps-max", "1/10",
            "--eval.noise", "0,1/20,1/10", "--epochs", "2", "--batch-size", "32", "--device", "cpu", "--eval.steps",
            "2", "--attack.steps", "2", "--eval.val-noise", "1/20", *options, "--out", str(path),
        ]  # fmt: skip
        assert train.main(words) == 0
    return path


def write_pictures(folder: Path, count: int = 3, side: int = 10) -> np.ndarray:
    """Grey PNG files 0.png …, and in a subfolder the last one; returns their pixels (count, 1, side, side)."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    (folder / "more").mkdir(parents=True)
    for number, image in enumerate(pixels):
        place = folder / "more" if number == count - 1 else folder
        Image.fromarray(image[0]).save(place / f"{number}.png")
    return pixels


def seal(export: Path, name: str = "model.safetensors") -> None:
    """Give config.json the checksum that a file now has."""
    import hashlib

    config = json.loads((export / "config.json").read_text())
    config["files"][name] = hashlib.sha256((export / name).read_bytes()).hexdigest()
    (export / "config.json").write_text(json.dumps(config))

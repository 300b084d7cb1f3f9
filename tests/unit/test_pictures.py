"""Images as they are drawn: channels first or last, of any range."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ima_dist.figures.interactive.images import image_grid
from ima_dist.figures.interactive.margins import extremes_figure
from ima_dist.figures.interactive.sample import sample_figure
from ima_dist.figures.interactive.style import channels_first, in_unit_range


def drawn(trace):
    """The pixels (H, W, 3) of a picture in a figure."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(trace.source.split(",")[1]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_are_drawn_like_channels_first(channels):
    first = np.random.default_rng(0).random((channels, 12, 16))
    last = np.moveaxis(first, 0, -1)
    figures = [image_grid([[(pixels, "", False)]], ["row"]) for pixels in (first, last)]
    pictures = [drawn(figure.data[0]) for figure in figures]
    assert pictures[1].shape == (12, 16, 3)
    assert np.array_equal(*pictures)
    assert figures[0].layout.shapes == figures[1].layout.shapes
    # Ambiguous shapes are taken as channels first.
    assert channels_first(np.zeros((3, 12, 3))).shape == (3, 12, 3)


def test_images_of_another_range_are_scaled_for_drawing():
    clean = np.array([-1000.0, 0.0, 500.0, 1000.0]).reshape(1, 1, 2, 2)
    arrays = {
        "index": np.array([5]), "label": np.array([0]), "clean": clean, "clean_prediction": np.array([0]),
        "noise": np.array([0.0, 100.0]), "noisy": np.stack([clean, clean + 100], 1), "prediction": np.array([[0, 1]]),
        "class_names": np.array(["a", "b"]),
    }  # fmt: skip
    picture = drawn(sample_figure(arrays, 0).data[0])
    assert picture[:, :, 0].tolist() == [[0, 128], [191, 255]]
    extremes = {
        "index": np.array([1]), "label": np.array([0]), "margin": np.array([0.1]), "largest": np.array([False]),
        "sample": clean, "class_names": np.array(["a", "b"]),
    }  # fmt: skip
    assert drawn(extremes_figure(extremes, 0).data[0])[0, 0, 0] == 0
    inside = np.array([0.25, 0.5])
    assert in_unit_range(inside, inside) is inside

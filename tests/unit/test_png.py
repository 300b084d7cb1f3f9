"""A run's figures as PNGs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from ima_dist.figures import png
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from ima_dist.rundir.run import Run
from tests.support.run_files import HISTORY, NOISE, TABLE_1, entry, point, write_snapshot


def check_image(path: Path) -> np.ndarray:
    """(H, W, 4) pixels in [0, 1] of a PNG that is 1200 wide, not too flat and not empty."""
    image = matplotlib.image.imread(path)
    assert image.shape[1] == 1200
    assert 500 <= image.shape[0] <= 1200
    assert (image[..., :3].min(axis=2) < 0.5).mean() > 0.002  # lines and letters
    return np.asarray(image)


def has_colour(image: np.ndarray, colour: str) -> bool:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(image[..., :3] - rgb).max(axis=2) < 0.02).sum() > 50)


def boundary_arrays() -> dict[str, Any]:
    x, y = np.linspace(-1, 2, 40), np.linspace(-1, 1, 40)
    points = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    above = np.broadcast_to(1 / (1 + np.exp(-20 * y))[:, None], (40, 40))  # class 1 lies above y = 0
    return {
        "grid_x": x,
        "grid_y": y,
        "probability": above,
        "points": points,
        "labels": (points[:, 1] > 0) * 1,
    }


def test_decision_boundary_lies_where_the_probability_is_a_half(tmp_path: Path) -> None:
    arrays = {**boundary_arrays(), "points": np.zeros((0, 2)), "labels": np.zeros(0, dtype=int)}
    png.decision_boundary(tmp_path / "b.png", **arrays)
    image = check_image(tmp_path / "b.png")
    blue = image[..., 2] - image[..., 0]
    middle = slice(300, 700)  # columns left of the legend, right of the axis
    # Faint orange (class 1) above, faint blue (class 0) below: rows count from the top.
    rows = blue[:, middle].mean(axis=1)
    orange_rows, blue_rows = np.flatnonzero(rows < -0.1), np.flatnonzero(rows > 0.05)
    assert len(orange_rows) > 50
    assert len(blue_rows) > 50
    assert orange_rows.max() < blue_rows.min()
    black = np.flatnonzero((image[:, middle, :3].max(axis=2) < 0.1).all(axis=1))
    between = (black > orange_rows.max() - 6) & (black < blue_rows.min() + 6)
    assert between.any()


def test_decision_boundary_of_a_constant_classifier(tmp_path: Path) -> None:
    arrays = {**boundary_arrays(), "probability": np.full((40, 40), 0.9)}
    png.decision_boundary(tmp_path / "b.png", **arrays)
    check_image(tmp_path / "b.png")


def test_accuracy_curves(tmp_path: Path) -> None:
    curves = [point(a, x, 1 - x) for a in ("pgd100", "worst") for x in NOISE]
    png.accuracy_curves(tmp_path / "a.png", curves, dict(zip(NOISE, TABLE_1["ima"], strict=True)), "Moons")
    image = check_image(tmp_path / "a.png")
    assert has_colour(image, "#0072B2")
    assert has_colour(image, "#D55E00")
    png.accuracy_curves(tmp_path / "one.png", curves[:7], None, "Moons")
    assert not has_colour(check_image(tmp_path / "one.png"), "#D55E00")


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_margin_histogram(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    margins = np.minimum(rng.exponential(0.1, 20_000), 0.3).astype(np.float32)
    png.margin_histogram(tmp_path / "m.png", margins, 0.3, rng.integers(0, classes, 20_000), "l2")
    image = check_image(tmp_path / "m.png")
    assert has_colour(image, "#0072B2") == (classes == 1)


def test_training_curves_have_a_margin_panel_only_with_margins(tmp_path: Path) -> None:
    png.training_curves(tmp_path / "ima.png", HISTORY)
    bare: list[dict[str, Any]] = [{**row, "margin_mean": None, "margin_quantiles": None} for row in HISTORY]
    png.training_curves(tmp_path / "ce.png", bare)
    with_margins, without = check_image(tmp_path / "ima.png"), check_image(tmp_path / "ce.png")
    assert with_margins.shape[0] == 2 * without.shape[0]
    assert has_colour(with_margins, "#009E73")
    assert not has_colour(without, "#009E73")


def test_draw_all(run: RunDir) -> None:
    assert png.draw_all(Run(run)) == []
    assert not run.figures_dir.exists()
    run.write_history(HISTORY)
    assert png.draw_all(Run(run)) == [run.figures_dir / "training.png"]

    write_json(run.summary_path, {"curves": [entry("pgd100", x, 0.9 - x) for x in NOISE]})
    write_snapshot(run, 3, [0.1, 0.2, 0.3] * 2)
    run.examples_dir.mkdir()
    np.savez(run.examples_dir / "boundary.npz", **boundary_arrays())
    drawn = png.draw_all(Run(run))
    assert [p.name for p in drawn] == ["decision_boundary.png", "accuracy.png", "margins.png", "training.png"]
    for path in drawn:
        check_image(path)
    assert sorted(p.name for p in run.figures_dir.iterdir()) == sorted(p.name for p in drawn)


def test_draw_all_draws_the_rest_of_a_run_with_a_damaged_part(run: RunDir) -> None:
    run.examples_dir.mkdir()
    run.boundary_path.write_bytes(b"PK damaged")
    run.write_history(HISTORY)
    read = Run(run)
    assert png.draw_all(read) == [run.figures_dir / "training.png"]
    assert "boundary.npz is damaged" in read.problems["boundary"]


def test_import_needs_no_torch() -> None:
    # Nor pyplot, whose global state is not safe to use from the threads of a dashboard.
    code = """
import sys
from ima_dist.figures import png
from ima_dist.results import paper, table
from ima_dist.rundir import directory
sys.exit(" ".join({"torch", "matplotlib.pyplot"} & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

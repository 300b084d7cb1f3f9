"""Small real runs in one results directory, made in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ima_dist import evaluate, train
from ima_dist.tracking.tables import make_dataset
from tests.support.datafiles import write_idx
from tests.support.figures import unrendered
from tests.support.inline import without_ray

_TINY = ["--data.subset", "60", "--epochs", "3", "--eval.steps", "2", "--attack.steps", "2", "--device", "cpu"]


def make_results(root: Path) -> Path:
    """A sweep over β on the moons with one other method, two trials at several epochs, and a run on images."""
    make_dataset(root)
    data = write_idx(root.parent / "images")
    torch.set_num_threads(1)  # as in tests, whose fixture comes later
    with unrendered(), pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        for method, beta, seed in (("ima", 0.5, 0), ("ima", 0.5, 1), ("ima", 0.8, 0), ("ce", 0.5, 0)):
            name = f"sweep/{method}-beta{beta:g}-seed{seed}"
            options = ["moons", "--method", method, "--beta", str(beta), "--seed", str(seed), *_TINY]
            assert train.main([*options, "--out", str(root / name)]) == 0
        again = ["--epochs", "1,2", "--eval.steps", "2", "--device", "cpu"]
        assert evaluate.main([str(root / "sweep" / "ima-beta0.8-seed0"), *again]) == 0
        images = ["fashion_mnist", "--eval.samples", "10", "--eval.noise", "0,0.1,0.2", "--data.dir", str(data)]
        assert train.main([*images, *_TINY, "--out", str(root / "images")]) == 0
    return root


RUN = "sweep/ima-beta0.8-seed0"


def files_of(root: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in root.rglob("*")}

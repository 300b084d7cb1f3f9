"""What several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# Under CI a missing package is a failure of the set-up, not a reason to skip.
needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST.is_dir() and os.environ.get("CI") != "true",
    reason="needs the Debian package dataset-fashion-mnist",
)


@pytest.fixture(autouse=True)
def one_thread():
    """Workers of the tests share few cores; more threads than cores make all of them slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""The real Fashion-MNIST, where its Debian package is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# Under CI a missing package is a failure of the set-up, not a reason to skip.
needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST.is_dir() and os.environ.get("CI") != "true",
    reason="needs the Debian package dataset-fashion-mnist",
)

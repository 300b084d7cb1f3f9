"""Whole small runs: what they draw is looked at in tests/unit/test_png.py and tests/system."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.figures import unrendered


@pytest.fixture(scope="module", autouse=True)
def unrendered_figures() -> Iterator[None]:
    """A module in which figures are looked at has its own fixture of this name."""
    with unrendered():
        yield

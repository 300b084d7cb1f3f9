"""Interactive figures, shared by dashboard and report: pure functions from data to a Plotly figure.

Plotly comes with the extra "dashboard"; nothing else imports this package without asking ``available`` first.
"""

from __future__ import annotations

import importlib.util


def available() -> bool:
    """Whether Plotly is installed."""
    return importlib.util.find_spec("plotly") is not None

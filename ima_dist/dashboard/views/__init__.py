"""The views, one per module: its controls, and the parts that it shows for their values."""

from ima_dist.dashboard.parts import View
from ima_dist.dashboard.views import (
    accuracy,
    boundary,
    certificates,
    classes,
    compare,
    home,
    margins,
    run,
    runs,
    sample,
    samples,
    sweep,
    tradeoff,
    training,
)

VIEWS: dict[str, View] = {
    "home": home,
    "runs": runs,
    "compare": compare,
    "run": run,
    "samples": samples,
    "sweep": sweep,
    "accuracy": accuracy,
    "training": training,
    "margins": margins,
    "classes": classes,
    "certificates": certificates,
    "tradeoff": tradeoff,
    "boundary": boundary,
    "sample": sample,
}
#: Those that stand behind the others in the menu: a figure or a table each.
FIGURES = ("accuracy", "training", "margins", "classes", "certificates", "tradeoff", "boundary", "sample")

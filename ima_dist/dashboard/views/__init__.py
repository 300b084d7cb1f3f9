"""The views, one per module: its controls, and the parts that it shows for their values."""

from ima_dist.dashboard.parts import View
from ima_dist.dashboard.views import accuracy, boundary, classes, margins, runs, sample, tradeoff, training

VIEWS: dict[str, View] = {
    "runs": runs,
    "accuracy": accuracy,
    "classes": classes,
    "tradeoff": tradeoff,
    "margins": margins,
    "training": training,
    "sample": sample,
    "boundary": boundary,
}

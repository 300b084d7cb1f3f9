"""Increasing-margin adversarial (IMA) training on one machine or many.

The Python face: ``ima_dist.fit`` trains, ``ima_dist.load`` gives the classifier of a run or an export,
``ima_dist.measure`` the accuracy of any network under attack, ``ima_dist.IncreasingMargin`` the method for a training
loop of one's own. Its parts are imported when they are first used, so ``import ima_dist`` itself takes neither torch
nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ima_dist.classifier.loading import load as load
    from ima_dist.classifier.measuring import measure as measure
    from ima_dist.classifier.network import Classifier as Classifier
    from ima_dist.classifier.network import Predictions as Predictions
    from ima_dist.classifier.robustness import Robustness as Robustness
    from ima_dist.fitting import fit as fit
    from ima_dist.methods.own_loop import IncreasingMargin as IncreasingMargin
    from ima_dist.rundir.run import Run as Run

__version__ = "0.1.0"

# Name -> the module that has it.
_FACE = {
    "fit": "ima_dist.fitting",
    "Run": "ima_dist.rundir.run",
    "load": "ima_dist.classifier.loading",
    "measure": "ima_dist.classifier.measuring",
    "Robustness": "ima_dist.classifier.robustness",
    "Classifier": "ima_dist.classifier.network",
    "Predictions": "ima_dist.classifier.network",
    "IncreasingMargin": "ima_dist.methods.own_loop",
}
__all__ = ["Classifier", "IncreasingMargin", "Predictions", "Robustness", "Run", "fit", "load", "measure"]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'ima_dist' has no attribute {name!r}")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})

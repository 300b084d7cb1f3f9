"""AutoAttack (Croce and Hein 2020), from its authors' own package, which only this module imports."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from ima_dist.attacks.common import Box, attack_mode, predicted, with_finite_gradient
from ima_dist.attacks.counting import put_back
from ima_dist.core import norms

_NORMS = {"linf": "Linf", "l2": "L2"}
# The loss of apgd-t and the targets of fab-t need a third and a fourth class.
_FEWEST_CLASSES = 4
_STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
_FEW_CLASSES = ["apgd-ce", "fab", "square"]
# Words in AutoAttack's warnings -> their names in summary.json; the last one is ours.
_REMARKS = {
    "randomized defense": "random",
    "probability distribution": "probabilities",
    "zero gradient": "zero_gradient",
    "decreased the robust accuracy": "square",
    "dynamic defense": "dynamic",
    "without Square": "without_square",
}
_LOGGER = logging.getLogger("auto-attack")


@contextlib.contextmanager
def remarks() -> Iterator[set[str]]:
    """The names of the warnings that AutoAttack logs inside the block, in which they are printed nowhere."""
    found: set[str] = set()
    handler = logging.Handler()
    handler.emit = lambda record: found.update(  # type: ignore[method-assign]
        name for words, name in _REMARKS.items() if words in record.getMessage()
    )
    propagate, _LOGGER.propagate = _LOGGER.propagate, False
    _LOGGER.addHandler(handler)
    try:
        yield found
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.propagate = propagate


class _InUnitBox(nn.Module):
    """A network as AutoAttack expects it: float32 images (B, C, H, W) with values from 0 to 1, float32 logits."""

    def __init__(self, network: nn.Module, low: float, width: float, x: Tensor, classes: Tensor) -> None:
        super().__init__()
        self.network, self.low, self.width, self.shape, self.dtype = network, low, width, x.shape[1:], x.dtype
        #: The classes (K,) int64 that are attacked: those that the network does not rule out for all samples.
        self.classes = classes

    def samples(self, z: Tensor) -> Tensor:
        """(B, ...) as the network takes them, from images."""
        return (z.to(self.dtype) * self.width + self.low).view(-1, *self.shape)

    def images(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32; a volume's planes are channels."""
        z = ((x - self.low) / self.width).float()
        return z.flatten(1, -3) if z.ndim > 4 else z.view(len(z), *([1] * (4 - z.ndim)), *z.shape[1:])

    def forward(self, z: Tensor) -> Tensor:
        logits = with_finite_gradient(self.network)(self.samples(z)).float()
        return logits if len(self.classes) == logits.shape[1] else logits.index_select(1, self.classes)


def in_unit_box(network: nn.Module, x: Tensor, logits: Tensor, box: Box, room: float) -> tuple[_InUnitBox, Tensor]:
    """The network and the samples (B, ...) as images; without a box there is ``room`` around all samples.

    logits: (B, C) at x. Towards a logit of −∞, of a class that is masked, AutoAttack's losses have no gradient.
    """
    possible = (~logits.isneginf()).any(0).nonzero()[:, 0]
    low, high = box if box is not None else (float(x.min()) - room, float(x.max()) + room)
    model = _InUnitBox(network, low, high - low, x, possible)
    return model, model.images(x)


def square_fits(height: int, width: int, norm: str) -> bool:
    """Whether Square can attack images of this size: its first tiles, under L2, would stick out of some sizes."""
    side = height // 5
    if norm != "l2" or not side:
        return norm != "l2"
    begin = (height - 5 * side) // 2
    return all(begin + length // side * side <= length for length in (height, width))


def autoattack(network: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int, box: Box) -> Tensor:
    """Predictions (B,) int64 under the standard version of AutoAttack for x (B, ...) with labels y (B,).

    With fewer than four classes it consists of apgd-ce, untargeted FAB and Square; Square is left out where it does
    not fit (``square_fits``). It computes in float32; its results are put into ball and box, and judged, in the
    network's own precision. AutoAttack only knows the box [0, 1], so other data are
    scaled evenly into it; without a box, so far from its walls that they do not matter. AutoAttack draws its own
    noise from ``seed``, which depends on the other samples in the batch.
    """
    with attack_mode(network), torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
        logits = network(x)
        model, z = in_unit_box(network, x, logits, box, eps)
        answers, classes = predicted(logits), len(model.classes)
        rows = (answers == y).nonzero()[:, 0]
        if not len(rows) or classes < 2:
            return answers
        settings = {"norm": _NORMS[norm], "eps": eps / model.width, "seed": seed, "device": x.device}
        attacks = _FEW_CLASSES if classes < _FEWEST_CLASSES else _STANDARD
        height, width = z.shape[2:]
        if not square_fits(height, width, norm):
            attacks = [name for name in attacks if name != "square"]
            _LOGGER.warning("without Square")
        attack = AutoAttack(model, version="custom", attacks=attacks, **settings)
        # What "standard" means; it can be asked for by name for ten or more classes alone.
        attack.apgd.n_restarts = attack.fab.n_restarts = 1
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        attack.verbose = False
        labels = torch.searchsorted(model.classes, y[rows])
        adversarial, _ = attack.run_standard_evaluation(z[rows], labels, batch_size=len(rows))
        found = put_back(network, model.samples(adversarial), x[rows], eps, norm, box)
        answers[rows] = predicted(network(norms.clip(found, x[rows], eps, norm, box)))
    return answers

"""AutoAttack (Croce and Hein 2020), from its authors' own package, which only this module imports."""

import torch
from pyautoattack import AutoAttack
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from ima_dist.attacks.common import Box, attack_mode
from ima_dist.core import norms

_NORMS = {"linf": "Linf", "l2": "L2"}
# The loss of apgd-t and the targets of fab-t need a third and a fourth class.
_FEWEST_CLASSES = 4
_STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
_FEW_CLASSES = ["apgd-ce", "fab", "square"]
# Square cuts an image into fifths under L2.
_LOWEST_IMAGE = 5


class _InUnitBox(nn.Module):
    """A network as AutoAttack expects it: images (B, C, H, W) with values from 0 to 1."""

    def __init__(self, network: nn.Module, low: float, width: float, shape: torch.Size) -> None:
        super().__init__()
        self.network, self.low, self.width, self.shape = network, low, width, shape

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.network((z * self.width + self.low).view(-1, *self.shape))
        return logits


def _in_unit_box(network: nn.Module, x: Tensor, box: Box, room: float) -> tuple[_InUnitBox, Tensor]:
    """The network and the samples (B, ...) as images; without a box there is ``room`` around all samples."""
    low, high = box if box is not None else (float(x.min()) - room, float(x.max()) + room)
    model = _InUnitBox(network, low, high - low, x.shape[1:])
    return model, ((x - low) / model.width).view(len(x), *([1] * (4 - x.ndim)), *x.shape[1:])


def autoattack(network: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int, box: Box) -> Tensor:
    """Predictions (B,) int64 under the standard version of AutoAttack for x (B, ...) with labels y (B,).

    With fewer than four classes it consists of apgd-ce, untargeted FAB and Square; under L2 Square is left out for
    samples that are lower or narrower than five pixels. AutoAttack only knows the box [0, 1], so other data are
    scaled evenly into it; without a box, so far from its walls that they do not matter. AutoAttack draws its own
    noise from ``seed``, which depends on the other samples in the batch.
    """
    model, z = _in_unit_box(network, x, box, eps)
    with attack_mode(network), torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
        predicted = network(x).argmax(1)
        rows = (predicted == y).nonzero()[:, 0]
        if not len(rows):
            return predicted
        classes = network(x[:1]).shape[1]
        settings = {"norm": _NORMS[norm], "eps": eps / model.width, "seed": seed, "device": x.device}
        attacks = _FEW_CLASSES if classes < _FEWEST_CLASSES else _STANDARD
        if norm == "l2" and min(z.shape[2:]) < _LOWEST_IMAGE:
            attacks = [name for name in attacks if name != "square"]
        attack = AutoAttack(model, version="custom", attacks=attacks, **settings)
        # What "standard" means; it can be asked for by name for ten or more classes alone.
        attack.apgd.n_restarts = attack.fab.n_restarts = 1
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        attack.verbose = False
        adversarial, _ = attack.run_standard_evaluation(z[rows], y[rows], batch_size=len(rows))
        predicted[rows] = model(adversarial).argmax(1)
    return predicted


def fab_distance(network: nn.Module, x: Tensor, y: Tensor, *, norm: str, box: Box) -> Tensor:
    """Distance (B,) from x to the nearest misclassified point that FAB finds; infinite if it finds none.

    Fast Adaptive Boundary attack (Croce and Hein 2020) towards each of up to nine strongest rival classes,
    100 iterations each. It looks for the smallest perturbation without a radius, so it is independent of the
    attacks that estimate margins in training. 0 for samples that are misclassified when clean.
    """
    model, z = _in_unit_box(network, x, box, 10 * float(x.max() - x.min()))
    with attack_mode(network), torch.no_grad():
        logits = network(x)
        distance = torch.where(logits.argmax(1) == y, torch.inf, 0.0).to(x)
        fab = FABAttack_PT(model, norm=_NORMS[norm], n_iter=100, device=x.device)
        for fab.target_class in range(2, 2 + min(9, logits.shape[1] - 1)):
            found = fab.attack_single_run(z, y, use_rand_start=False, is_targeted=True)
            length = norms.length((found - z) * model.width, norm)
            distance = torch.where(model(found).argmax(1) != y, torch.minimum(distance, length), distance)
    return distance

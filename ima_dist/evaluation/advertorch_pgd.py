"""The paper's attack, on the library that the paper used: advertorch's PGD (section 3).

The only module that imports advertorch. Its last release imports a helper that torch has removed; it is restored
before the import. Its defenses, which nothing here uses, are left out: they import torchvision, which takes a second.
"""

import importlib
import sys
import types

import numpy as np
import torch
from torch import Tensor, nn

# Not "import torch.autograd.gradcheck": that name is also a function, which would win. Only attacks that are not used
# here would call the helper.
vars(importlib.import_module("torch.autograd.gradcheck")).setdefault("zero_gradients", None)
_left_out = types.ModuleType("advertorch.defenses")
_stood_in = sys.modules.setdefault(_left_out.__name__, _left_out) is _left_out

from advertorch.attacks.iterative_projected_gradient import perturb_iterative  # noqa: E402
from advertorch.loss import LogitMarginLoss  # noqa: E402

if _stood_in:  # whoever imports them gets the real ones
    del sys.modules[_left_out.__name__]

from ima_dist.attacks.common import with_finite_gradient  # noqa: E402


def advertorch_pgd(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: str,
    steps: int,
    step_scale: float,
    loss: str,
    start: Tensor,
    box: tuple[float, float] | None,
) -> Tensor:
    """The last iterate of advertorch's PGD from x + start, (B, ...) -> (B, ...).

    ``loss`` is "ce" or "margin"; the step is step_scale·eps/steps. The start is ours rather than advertorch's,
    to key it by sample and because advertorch draws none under L2 for data without a box.
    """
    function = nn.CrossEntropyLoss(reduction="sum") if loss == "ce" else LogitMarginLoss(reduction="sum")
    low, high = box if box is not None else (-np.inf, np.inf)
    with torch.enable_grad():
        adv = perturb_iterative(
            x,
            y,
            with_finite_gradient(network),
            nb_iter=steps,
            eps=eps,
            eps_iter=step_scale * eps / steps,
            loss_fn=function,
            delta_init=((x + start).clamp(low, high) - x).detach(),
            ord=np.inf if norm == "linf" else 2,
            clip_min=low,
            clip_max=high,
        )
    return adv.detach()

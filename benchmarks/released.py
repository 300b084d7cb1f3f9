"""The loss of IMA that its authors have released, from a directory that the user names: a checkout of their code."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain import Step
from ima_dist.training.loop import Training

_MODULE = "RobustDNN_IMA_bn"


def released(directory: Path) -> Any:
    """Their module, wherever it lies below ``directory``. Raises FileNotFoundError if it is not there."""
    found = sorted(directory.rglob(f"{_MODULE}.py"))
    if not found:
        raise FileNotFoundError(f"{directory} holds no {_MODULE}.py: --authors names a checkout of the released code.")
    sys.path.append(str(found[0].parent))  # it imports its neighbours
    return importlib.import_module(_MODULE)


def ima(training: Training, module: Any) -> Step:
    """A step with their loss, in our settings: cross-entropy, as many steps and halvings, the midpoint of the bracket.

    As in their own training script, noisy samples exist where the attack crossed, and a margin moves halfway to the
    distance of the boundary.
    """
    config, network = training.config, training.network
    low, high = training.train.box or (-math.inf, math.inf)
    norm = math.inf if config.norm == "linf" else 2

    def step(x: Tensor, y: Tensor, indices: Tensor, margins: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        loss, _, _, _, predicted, crossed, points, _, rows = module.IMA_loss(
            network,
            x,
            y,
            margin=margins,
            norm_type=norm,
            max_iter=config.attack.steps,
            step=config.attack.step_scale * margins / config.attack.steps,
            rand_init_norm=margins,
            clip_X_min=low,
            clip_X_max=high,
            refine_Xn_max_iter=config.attack.bisections,
            stop_near_boundary=True,
            beta=config.beta,
            beta_position=1,
            pgd_loss_fn="ce",
            model_Xn_advc_p=True,
        )
        new = margins.clone()
        if len(rows):
            distance = torch.linalg.vector_norm((points - x[rows]).flatten(1), norm, dim=1)
            new[rows] = (margins[rows] + distance) / 2
        expand, keep = (crossed == 0) & (predicted == y), (crossed > 0) & (predicted == y)
        new = torch.where(expand, margins + config.expansion, torch.where(keep, new, margins))
        return loss, new.clamp(0, config.eps_max)

    return step

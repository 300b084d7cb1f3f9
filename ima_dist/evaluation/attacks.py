"""The attacks that ``--eval.attacks`` names, each with the interface that ``run.evaluate`` calls.

An attack is ``function(network, x, y, keys, config, box)``: samples x (B, ...), labels y (B,) int64, one
random key for each sample (B,) int64, so that a sample's noise does not depend on the batch it stands in. It
returns predictions (B,) int64 for each (loss, noise level); every level of ``config.eval.noise`` has an
entry with the loss "both", which is the attack's verdict.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ima_dist import noise
from ima_dist.attacks import worst
from ima_dist.attacks.common import Box, attack_mode
from ima_dist.config import Config
from ima_dist.evaluation.advertorch_pgd import advertorch_pgd

Predictions = dict[tuple[str, float], Tensor]
EvaluationAttack = Callable[[nn.Module, Tensor, Tensor, Tensor, Config, Box], Predictions]


def pgd100(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """The paper's protocol: final iterate, each level alone, both losses, the worse of the two (section 3)."""
    out: Predictions = {}
    with attack_mode(network), torch.no_grad():
        clean = network(x).argmax(1)
        for eps in config.eval.noise:
            for loss in ("ce", "margin"):
                if eps == 0:
                    out[loss, eps] = clean
                    continue
                adv = advertorch_pgd(
                    network,
                    x,
                    y,
                    eps,
                    norm=config.norm,
                    steps=config.eval.steps,
                    step_scale=config.eval.step_scale,
                    loss=loss,
                    start=noise.start(keys, x, eps, config.norm),
                    box=box,
                )
                out[loss, eps] = network(adv).argmax(1)
            out["both", eps] = worse(out["ce", eps], out["margin", eps], y)
    return out


def strictest(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """``attacks.worst``: any iterate of either loss counts, and what a smaller radius broke stays broken."""
    predictions, _ = worst(
        network,
        x,
        y,
        config.eval.noise,
        norm=config.norm,
        steps=config.eval.steps,
        step_scale=config.eval.step_scale,
        start=lambda eps: noise.start(keys, x, eps, config.norm),
        box=box,
    )
    return {("both", eps): predictions[i] for i, eps in enumerate(config.eval.noise)}


def worse(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """The prediction of whichever of two attacks broke the sample, (B,), (B,), (B,) -> (B,)."""
    return torch.where(a != y, a, b)


EVALUATION_ATTACKS: dict[str, EvaluationAttack] = {"pgd100": pgd100, "worst": strictest}

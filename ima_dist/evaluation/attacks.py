"""The attacks that ``--eval.attacks`` names, each with the interface that ``runner.evaluate`` calls.

An attack is ``function(network, x, y, keys, config, box)``: samples x (B, ...), labels y (B,) int64, one random key
per sample (B,) int64, so that a sample's noise does not depend on its batch. It returns ``Predictions``.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks import minimal, spsa, worst_curve
from ima_dist.attacks.common import Box, attack_mode, predicted
from ima_dist.attacks.counting import ADVERTORCH_L2, at_level, put_back
from ima_dist.attacks.curve import FMN_SHARE
from ima_dist.config.attacks import ATTACK_TABLE, mma_step_scale
from ima_dist.config.schema import Config
from ima_dist.core import noise, norms
from ima_dist.evaluation.advertorch_pgd import advertorch_pgd
from ima_dist.evaluation.autoattack import autoattack


class Predictions(dict[tuple[str, float], Tensor]):
    """Predictions (B,) int64 for each (loss, noise level).

    Every level of ``config.eval.noise`` has an entry with the loss "both", which is the attack's verdict.
    implied: noise level -> (B,) bool: not attacked, because the sample has survived a larger one.
    logits: noise level -> (B, C), those behind the verdict, of attacks that go on with samples that they have broken.
    Where an attack leaves such samples alone, they would lie just beyond the boundary, and flatter the network.
    distance: (B,) of attacks that seek it, to the nearest misclassified point found; infinite where none was found.
    """

    def __init__(self) -> None:
        super().__init__()
        self.distance: Tensor | None = None
        self.implied: dict[float, Tensor] = {}
        self.logits: dict[float, Tensor] = {}


EvaluationAttack = Callable[[nn.Module, Tensor, Tensor, Tensor, Config, Box], Predictions]


def pgd100(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """The paper's protocol (section 3): each level separately, the final iterate, once with each loss.

    The worse of both losses counts for each sample: the paper says only that the attack runs twice.
    """
    out = Predictions()
    with attack_mode(network), torch.no_grad():
        clean = network(x)
        for eps in config.eval.noise:
            at_level(network, eps, _useful(config))
            xi = noise.start(keys, x, eps, config.norm)
            logits = {}
            for loss in ("ce", "margin"):
                logits[loss] = clean
                if eps > 0:
                    adv = advertorch_pgd(network, x, y, eps, loss=loss, start=xi, **_settings(config, box))
                    logits[loss] = network(put_back(network, adv, x, eps, config.norm, box))
                out[loss, eps] = predicted(logits[loss])
            out["both", eps] = worse(out["ce", eps], out["margin", eps], y)
            out.logits[eps] = _worse_logits(logits["ce"], logits["margin"], y)
    return out


def _settings(config: Config, box: Box) -> dict[str, Any]:
    return {"norm": config.norm, "steps": config.eval.steps, "step_scale": config.eval.step_scale, "box": box}


def _useful(config: Config) -> tuple[float, float]:
    """Sizes of gradients between which advertorch takes a step."""
    return ADVERTORCH_L2 if config.norm == "l2" else (0.0, math.inf)


def strictest(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """``attacks.worst_curve``: FMN and every iterate of PGD count."""
    # Its batches hold samples of several levels: what it meets is counted for the largest.
    at_level(network, config.eval.noise[-1])

    def start(eps: float, number: int) -> Tensor:
        # The first start is that of the other attacks.
        return noise.start(noise.derived(keys, number) if number else keys, x, eps, config.norm)

    found = worst_curve(network, x, y, config.eval.noise, start=start, **_settings(config, box))
    out = Predictions()
    for number, eps in enumerate(config.eval.noise):
        out["both", eps] = found.predictions[number]
        out.implied[eps] = found.implied[number]
    return out


def minimal_norm(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """``attacks.minimal``; each sample is broken from its distance on."""
    largest = config.eval.noise[-1]

    def start(number: int) -> Tensor:
        return noise.start(noise.derived(keys, number) if number else keys, x, largest, config.norm)

    # The attack belongs to no level: what it meets is counted for the largest.
    at_level(network, largest)
    steps = max(1, round(FMN_SHARE * config.eval.steps))
    found = minimal(network, x, y, norm=config.norm, steps=steps, start=start if largest else None, box=box)
    out = Predictions()
    for eps in config.eval.noise:
        out["both", eps] = torch.where(found.distance <= eps, found.predicted, y)
    out.distance = found.distance
    return out


def pgd_mma(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """The attack of Ding et al. 2020, which the paper uses for MNIST and CIFAR-10 (Tables 7, 8, 10 and 11).

    PGD from ten random starts, five with the cross-entropy and five with the CW loss, in steps of ε/4, for
    MNIST under L∞ ε/40; a sample is broken if any of the ten final iterates is misclassified. The CW loss is
    the margin loss up to a constant.
    """
    out = Predictions()
    settings = {**_settings(config, box), "step_scale": mma_step_scale(config)}
    with attack_mode(network), torch.no_grad():
        clean = predicted(network(x))
        for eps in config.eval.noise:
            at_level(network, eps, _useful(config))
            answers = clean.clone()
            for restart in range(2 * _MMA_RESTARTS if eps > 0 else 0):
                rows = (answers == y).nonzero()[:, 0]
                if not len(rows):
                    break
                loss = "ce" if restart < _MMA_RESTARTS else "margin"
                xi = noise.start(noise.derived(keys[rows], restart), x[rows], eps, config.norm)
                adv = advertorch_pgd(network, x[rows], y[rows], eps, loss=loss, start=xi, **settings)
                answers[rows] = predicted(network(put_back(network, adv, x[rows], eps, config.norm, box)))
            out["both", eps] = answers
    return out


_MMA_RESTARTS = 5


def black_box(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """``attacks.spsa`` with the paper's settings, each level separately (Tables 9 and 12)."""

    def attacked(eps: float) -> Tensor:
        settings: dict[str, Any] = {"samples": config.eval.spsa_samples, "iterations": config.eval.steps}
        return spsa(network, x, y, eps, keys, norm=config.norm, box=box, **settings) if eps else x

    return _by_level(network, config, attacked)


def white_noise(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """One draw of noise uniform in the ball, for L∞ of amplitude ε in each pixel (appendix A)."""

    def noisy(eps: float) -> Tensor:
        return norms.clip(x + noise.start(keys, x, eps, config.norm), x, eps, config.norm, box)

    return _by_level(network, config, noisy, keep=True)


def _by_level(
    network: nn.Module, config: Config, attacked: Callable[[float], Tensor], keep: bool = False
) -> Predictions:
    """keep: the logits too."""
    out = Predictions()
    with attack_mode(network), torch.no_grad():
        for eps in config.eval.noise:
            at_level(network, eps)
            logits = network(attacked(eps))
            out["both", eps] = predicted(logits)
            if keep:
                out.logits[eps] = logits
    return out


def auto_attack(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Predictions:
    """The standard version of AutoAttack; a sample broken at a smaller radius is not attacked again."""
    out = Predictions()
    with attack_mode(network), torch.no_grad():
        answers = predicted(network(x))
        for eps in config.eval.noise:
            at_level(network, eps)
            rows = (answers == y).nonzero()[:, 0]
            if eps > 0 and len(rows):
                answers[rows] = autoattack(network, x[rows], y[rows], eps, norm=config.norm, seed=config.seed, box=box)
            out["both", eps] = answers.clone()
    return out


def worse(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """For each sample the prediction of the attack that broke it, a's if both or none did, (B,), (B,), (B,) -> (B,)."""
    return torch.where(a != y, a, b)


def _worse_logits(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """The logits (B, C) under the attack that broke the sample; if both or none did, those less sure of the class y."""
    first, second = (predicted(logits) != y for logits in (a, b))
    sure = (logits.log_softmax(1).gather(1, y[:, None])[:, 0] for logits in (a, b))
    less = torch.lt(*sure)
    return torch.where(torch.where(first == second, less, first)[:, None], a, b)


EVALUATION_ATTACKS: dict[str, EvaluationAttack] = {
    name: globals()[attack.function] for name, attack in ATTACK_TABLE.items()
}

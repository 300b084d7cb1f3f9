"""Catastrophic overfitting: training on single gradient steps suddenly loses its robustness and keeps its accuracy.

Seen by Wong et al. (ICLR 2020). The network learns to withstand the one step and nothing else, so clean and PGD
accuracy part within an epoch or so. Both are taken on validation samples.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ima_dist.config.schema import Config
from ima_dist.results.text import accuracy, number_in

# It has happened where less than this share of the best PGD accuracy is left.
_LEFT = 0.5


class Overfitting(NamedTuple):
    """epoch: the first after which it is seen. best, left: PGD accuracy at its best before, and after ``epoch``."""

    epoch: int
    best: float
    left: float


def single_step(config: Config) -> bool:
    """Whether training takes a single gradient step per sample."""
    return config.method == "nfgsm" or (config.method in ("adv", "fat") and config.attack.steps == 1)


def watched_noise(config: Config) -> float | None:
    """The noise level of the attack on validation samples after each epoch; None if there is none.

    ``eval.val_noise``; training on single steps is watched without it, at ε.
    """
    return config.eps_max if config.eval.val_noise is None and single_step(config) else config.eval.val_noise


def overfitting(config: Config, history: Iterable[dict[str, Any]]) -> Overfitting | None:
    """The first epoch after which half of the best PGD accuracy is gone, and clean accuracy has not gone with it.

    None if there is no such epoch, or if training takes several steps per sample.
    """
    best = clean_then = 0.0
    for row in history if single_step(config) else ():
        clean, robust = (number_in(row.get(name)) for name in ("val_accuracy", "val_robust_accuracy"))
        if clean is None or robust is None:
            continue
        lost = best - robust
        # A training that diverges loses both.
        if robust < _LEFT * best and clean_then - clean < lost / 2:
            return Overfitting(int(row["epoch"]), best, robust)
        if robust >= best:
            best, clean_then = robust, clean
    return None


def overfitting_doubts(config: Config, history: Iterable[dict[str, Any]]) -> list[str]:
    """A sentence on catastrophic overfitting, if there is any."""
    found = overfitting(config, history)
    if found is None:
        return []
    remedies = "more noise (--nfgsm.noise), a smaller --eps-max" if config.method == "nfgsm" else "--method nfgsm"
    return [
        f"Catastrophic overfitting after epoch {found.epoch}: validation accuracy under PGD fell from "
        f"{accuracy(found.best)} to {accuracy(found.left)} while clean accuracy stayed. Take an earlier epoch "
        f"(--select best-robust), or train with {remedies} or several steps."
    ]

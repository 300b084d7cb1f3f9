"""Randomised smoothing: what a network answers to most draws of Gaussian noise, and how far that holds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ima_dist.attacks.common import Network, attack_mode, predicted
from ima_dist.core import noise

#: Draws that choose the class to certify (n0 of Cohen et al.).
FIRST = 100
#: In place of a class, where the smoothed classifier abstains.
ABSTAINS = -1

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class SmoothedResult:
    """Result of ``smoothed``: of N samples.

    Attributes:
        prediction: (N,) int64, of the smoothed classifier; ``ABSTAINS`` where the draws do not tell.
        certified: (N,) int64, the class that holds within the radius; ``ABSTAINS`` where none does.
        radius: (N,) L2 radius of the certificate, in units of the data; 0 where there is none.
        votes: (N,) int64, draws for the class that was to be certified.
    """

    prediction: Ints
    certified: Ints
    radius: Floats
    votes: Ints


def counted(
    model: Network, x: Tensor, keys: Tensor, *, sigma: float, draws: int, first: int = 0, at_once: int = 256
) -> Tensor:
    """How many draws of noise have each class for an answer, (B, C) int64.

    Answers whose largest logit is NaN or infinite are counted for no class.

    Args:
        model: maps (N, ...) to logits (N, C); used in evaluation mode, restored afterwards.
        x: (B, ...). keys: (B,) int64, of the noise.
        draws: vectors number ``first`` to ``first + draws - 1`` of each key's stream, times ``sigma``.
        at_once: noisy samples in a pass.
    """
    rows = []
    with torch.no_grad(), attack_mode(model):
        for i in range(len(x)):
            votes: Tensor | None = None
            for begin in range(first, first + draws, at_once):
                count = min(at_once, first + draws - begin)
                drawn = noise.normals(keys[i : i + 1], (count, *x.shape[1:]), begin, x.dtype)[0]
                logits = model(x[i] + sigma * drawn)
                votes = torch.zeros(logits.shape[1] + 1, dtype=torch.int64, device=x.device) if votes is None else votes
                # -1, which is no class, comes last.
                votes += torch.bincount(predicted(logits) % len(votes), minlength=len(votes))
            assert votes is not None
            rows.append(votes[:-1])
    return torch.stack(rows)


def smoothed(
    model: Network, x: Tensor, keys: Tensor, *, sigma: float, draws: int, alpha: float, at_once: int = 256
) -> SmoothedResult:
    """The smoothed classifier's answers and certificates (Cohen, Rosenfeld and Kolter, ICML 2019).

    The smoothed classifier answers with the class that the network answers most often to x + N(0, σ²I). ``FIRST`` draws
    choose a class (CERTIFY), and ``draws`` further ones decide: ``decide`` and ``certify``. Noise is not cut to the
    data's box, since the certificate is of the unbounded one.

    Args:
        model, x, keys, sigma, draws, at_once: as for ``counted``.
        alpha: probability that a sample's certificate, or its prediction, is wrong.
    """
    how: dict[str, Any] = {"sigma": sigma, "at_once": at_once}
    guess = counted(model, x, keys, draws=FIRST, **how).argmax(1)
    counts = counted(model, x, keys, draws=draws, first=FIRST, **how)
    votes = counts.gather(1, guess[:, None])[:, 0].cpu().numpy()
    radius = certify(votes, draws, sigma=sigma, alpha=alpha)
    certified = np.where(radius > 0, guess.cpu().numpy(), ABSTAINS)
    return SmoothedResult(decide(counts.cpu().numpy(), alpha), certified, radius, votes)


def certify(votes: Ints, draws: int, *, sigma: float, alpha: float) -> Floats:
    """Certified L2 radii (N,), from the number of ``draws`` that had the class, (N,); 0 where it has no majority.

    σ Φ⁻¹(p) if p is above 1/2, where p is the lower bound of the class's probability, with confidence 1 - alpha
    (Cohen et al. 2019, theorem 1 and CERTIFY).
    """
    from scipy import stats  # here and below: it takes long to import, and only certificates need it

    p = lower_bound(votes, draws, alpha)
    return np.where(p > 0.5, sigma * stats.norm.ppf(np.maximum(p, 0.5)), 0.0)


def lower_bound(successes: Ints, trials: int, alpha: float) -> Floats:
    """Exact lower bound of a probability, one-sided with confidence 1 - alpha (Clopper and Pearson 1934), (N,)."""
    from scipy import stats

    some = np.maximum(successes, 1)
    return np.where(successes > 0, stats.beta.ppf(alpha, some, trials - some + 1), 0.0)


def decide(counts: Ints, alpha: float) -> Ints:
    """The most frequent class (N,), from counts (N, C); ``ABSTAINS`` where it may not be the most probable one.

    Two-sided binomial test of the two most frequent classes against equal odds (PREDICT; Hung and Fithian 2019).
    """
    from scipy import stats

    order = np.argsort(-counts, axis=1, kind="stable")
    top, second = (np.take_along_axis(counts, order[:, i : i + 1], 1)[:, 0] for i in (0, 1))
    chance = np.minimum(1.0, 2 * stats.binom.sf(top - 1, top + second, 0.5))
    return np.where(chance <= alpha, order[:, 0], ABSTAINS)

"""Noise levels for plain adversarial training, read from the margins of a run (paper, section 3.3 and Fig. 14)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np

from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config
from ima_dist.config.values import as_flags, option_values

# Options copied from the run into the recommended command.
_SHARED = ("data.", "model.", "optimizer.", "epochs", "batch_size", "seed", "autocast", "eval.noise")


@dataclass(frozen=True)
class Recommendation:
    """Noise levels to try, ascending, in the run's norm and the units of the data, and the margins they come from.

    samples: number of margins. share_zero, share_at_max: shares of them that are 0, or eps_max.
    """

    levels: tuple[float, float, float]
    samples: int
    share_zero: float
    share_at_max: float


def recommend(margins: np.ndarray, eps_max: float) -> Recommendation:
    """The ends and the median of the shortest interval that holds half of the positive margins.

    This is the peak in the paper's Fig. 14. Margins of 0 belong to samples that are misclassified without noise, and
    say nothing about ε. ``margins``: (N,). Raises ConfigError if fewer than two are positive.
    """
    positive = np.sort(margins[margins > 0])
    if len(positive) < 2:
        raise ConfigError("Fewer than two margins are above 0: train the run further first.")
    half = len(positive) // 2
    start = int(np.argmin(positive[half:] - positive[: len(positive) - half]))
    inside = positive[start : start + half + 1]
    low, middle, high = (float(f"{v:.2g}") for v in (inside[0], np.median(inside), inside[-1]))
    at_max = float((margins >= eps_max * (1 - 1e-6)).mean())
    return Recommendation((low, middle, high), len(margins), float((margins <= 0).mean()), at_max)


def adversarial_command(config: Config, eps: float) -> str:
    """The command that trains adv with ``eps`` on the data and network of ``config``, with its optimiser."""
    given = {"norm": config.norm, "method": "adv"}
    try:
        usual = make_config(config.preset, given)
    except ConfigError:  # the paper has no such experiment, so the run has noise levels of its own
        usual = make_config(config.preset, {**given, "eps_max": eps, "eval.noise": (0.0,)})
    own, preset = option_values(config), option_values(usual)
    words = ["python", "-m", "ima_dist.train", config.preset, "--method", "adv", "--norm", config.norm]
    shared = {k: v for k, v in own.items() if k.startswith(_SHARED) and v != preset[k]}
    words += as_flags({"eps_max": f"{eps:g}", **shared})
    return shlex.join(words)

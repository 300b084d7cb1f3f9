"""Options of randomised smoothing, in training and in the evaluation that certifies it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ima_dist.config.attacks import SMOOTHING
from ima_dist.config.checked import Checked
from ima_dist.config.errors import ConfigError

if TYPE_CHECKING:
    from ima_dist.config.schema import Config

# An option that weights and margins cannot depend on.
_Aside = partial(Field, json_schema_extra={"alters_result": False})


class RandConfig(Checked):
    kind: Literal["uniform", "gaussian"] = Field(
        "uniform",
        description="rand: noise uniform in the ball of eps-max, or Gaussian with that standard deviation in each "
        "value, which --attack smoothing certifies",
    )


class SmoothingConfig(Checked):
    """Settings of the attack ``smoothing`` (Cohen et al. 2019)."""

    sigma: float | None = _Aside(
        None,
        gt=0,
        description="smoothing: standard deviation of the noise (default: eps-max, after training with --rand.kind "
        "gaussian)",
    )
    draws: int = _Aside(
        1000, ge=10, le=100_000, description="smoothing: draws of noise per sample; more certify larger radii"
    )
    alpha: float = _Aside(
        0.001, gt=0, lt=0.5, description="smoothing: probability that the certificate of a sample is wrong"
    )


def sigma_of(config: Config) -> float | None:
    """Standard deviation of the noise of ``smoothing``; None if it is neither given nor known from training."""
    trained = config.eps_max if (config.method, config.rand.kind) == ("rand", "gaussian") else None
    return trained if config.smoothing.sigma is None else config.smoothing.sigma


def check_smoothing(config: Config) -> None:
    """Raise ConfigError if ``smoothing`` is asked for and its noise is not known."""
    if SMOOTHING in config.eval.attacks and sigma_of(config) is None:
        raise ConfigError(
            "--attack smoothing needs --smoothing.sigma, the standard deviation of the Gaussian noise that the network "
            "was trained with."
        )
